// SPDX-License-Identifier: Apache-2.0
#include "server/tls_certificates.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/regular_file.h"

namespace kivi {
namespace {

// The oldest reason of OpenSSL's error queue, which is emptied.
std::string reason_of_openssl() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  return reason == nullptr ? "unknown reason" : reason;
}

// Chooses `wanted` of the protocols that a client offers: each is a byte of length and its name.
int choose_protocol(SSL*, const unsigned char** chosen, unsigned char* chosen_bytes,
                    const unsigned char* offered, unsigned offered_bytes, void* wanted) {
  const std::string_view name = *static_cast<const std::string*>(wanted);
  for (unsigned at = 0; at < offered_bytes;) {
    const unsigned bytes = offered[at];
    if (at + 1 + bytes > offered_bytes) break;
    if (name == std::string_view(reinterpret_cast<const char*>(offered) + at + 1, bytes)) {
      *chosen = offered + at + 1;
      *chosen_bytes = static_cast<unsigned char>(bytes);
      return SSL_TLSEXT_ERR_OK;
    }
    at += 1 + bytes;
  }
  return SSL_TLSEXT_ERR_ALERT_FATAL;
}

struct Files {
  const std::string &certificates, &key, &client_certificates;
};

// OpenSSL would wait for a FIFO, and has no reason to tell where a file is not there.
Status check_regular(const std::string& file, const char* field) {
  const Result<RegularFile> opened = RegularFile::open(file);
  if (opened.ok()) return ok_status();
  return Error{opened.error().code, fmt::format("{} {}", field, opened.error().message), field};
}

// Gives no passphrase: by default OpenSSL asks for one on the terminal, and waits.
int note_passphrase(char*, int, int, void* asked) {
  *static_cast<bool*>(asked) = true;
  return -1;
}

Status use_key(SSL_CTX& context, const Files& files) {
  bool asked = false;
  SSL_CTX_set_default_passwd_cb(&context, note_passphrase);
  SSL_CTX_set_default_passwd_cb_userdata(&context, &asked);
  const bool used = SSL_CTX_use_PrivateKey_file(&context, files.key.c_str(), SSL_FILETYPE_PEM) == 1;
  SSL_CTX_set_default_passwd_cb_userdata(&context, nullptr);
  SSL_CTX_set_default_passwd_cb(&context, nullptr);
  if (used) return ok_status();
  const std::string reason = reason_of_openssl();
  const bool same_file = files.key == files.certificates;
  const char* const field = same_file ? "ssl_certfile" : "ssl_keyfile";
  if (asked)
    return Error{ErrorCode::invalid,
                 fmt::format("{} {}: the private key is encrypted, must have no passphrase", field,
                             files.key),
                 field};
  return Error{ErrorCode::invalid,
               fmt::format("{} {}: no PEM private key can be read: {}{}", field, files.key, reason,
                           same_file ? " (--ssl-keyfile names a file of its own for it)" : ""),
               field};
}

Result<std::shared_ptr<SSL_CTX>> make_context(const Files& files, const std::string& protocol) {
  const auto failed = [](const char* what, const std::string& file, const char* field) {
    return Error{ErrorCode::invalid,
                 fmt::format("{} {}: {}: {}", field, file, what, reason_of_openssl()), field};
  };
  KIVI_RETURN_IF_ERROR(check_regular(files.certificates, "ssl_certfile"));
  KIVI_RETURN_IF_ERROR(check_regular(files.key, "ssl_keyfile"));
  if (!files.client_certificates.empty())
    KIVI_RETURN_IF_ERROR(check_regular(files.client_certificates, "ssl_ca_certs"));
  ERR_clear_error();
  const std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr || SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION) != 1)
    return Error{ErrorCode::internal, "OpenSSL: " + reason_of_openssl()};
  // A client must not make us renegotiate, and compression leaks secrets (CRIME).
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                         SSL_OP_CIPHER_SERVER_PREFERENCE);
  if (SSL_CTX_use_certificate_chain_file(context.get(), files.certificates.c_str()) != 1)
    return failed("no PEM certificate chain can be read", files.certificates, "ssl_certfile");
  KIVI_RETURN_IF_ERROR(use_key(*context, files));
  if (SSL_CTX_check_private_key(context.get()) != 1)
    return failed("the key does not belong to the certificate", files.key, "ssl_keyfile");
  if (!files.client_certificates.empty()) {
    STACK_OF(X509_NAME)* names = SSL_load_client_CA_file(files.client_certificates.c_str());
    if (names == nullptr || SSL_CTX_load_verify_locations(
                                context.get(), files.client_certificates.c_str(), nullptr) != 1) {
      sk_X509_NAME_pop_free(names, X509_NAME_free);
      return failed("no PEM certificates can be read", files.client_certificates, "ssl_ca_certs");
    }
    SSL_CTX_set_client_CA_list(context.get(), names);  // owns the names
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    // A resumed session must not outlive a reload of the authorities.
    SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(context.get(), SSL_OP_NO_TICKET);
  }
  SSL_CTX_set_alpn_select_cb(context.get(), choose_protocol, const_cast<std::string*>(&protocol));
  return context;
}

}  // namespace

TlsCertificates::TlsCertificates(const ServerConfig& config, std::string protocol)
    : certificates_(config.ssl_certfile),
      key_(config.ssl_keyfile.empty() ? config.ssl_certfile : config.ssl_keyfile),
      client_certificates_(config.ssl_ca_certs),
      protocol_(std::move(protocol)) {}

Result<std::unique_ptr<TlsCertificates>> TlsCertificates::load(const ServerConfig& config,
                                                               std::string protocol) {
  if (config.ssl_certfile.empty()) {
    if (config.ssl_keyfile.empty() && config.ssl_ca_certs.empty())
      return std::unique_ptr<TlsCertificates>();
    const bool key = !config.ssl_keyfile.empty();
    return Error{ErrorCode::invalid,
                 fmt::format("{} is given without ssl_certfile, so there would be no TLS",
                             key ? "ssl_keyfile" : "ssl_ca_certs"),
                 "ssl_certfile"};
  }
  std::unique_ptr<TlsCertificates> certificates(new TlsCertificates(config, std::move(protocol)));
  KIVI_RETURN_IF_ERROR(certificates->reload());
  return certificates;
}

std::shared_ptr<SSL_CTX> TlsCertificates::context() const {
  const std::lock_guard lock(mutex_);
  return context_;
}

Status TlsCertificates::reload() {
  KIVI_ASSIGN_OR_RETURN(std::shared_ptr<SSL_CTX> context,
                        make_context({certificates_, key_, client_certificates_}, protocol_));
  const std::lock_guard lock(mutex_);
  context_.swap(context);
  return ok_status();
}

}  // namespace kivi
