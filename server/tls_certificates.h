// SPDX-License-Identifier: Apache-2.0
// TlsCertificates holds the certificate and key of the server and the authorities of its clients,
// in the form that OpenSSL needs. They can be read again while the server runs.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "base/result.h"
#include "server/server_config.h"

struct ssl_ctx_st;

namespace kivi {

// Any thread.
class TlsCertificates {
 public:
  // Reads the ssl_* files of `config`; null if it names none. `protocol` is what ALPN accepts
  // ("h2", "http/1.1"). A client that offers no protocol is accepted. Errors name the field and the
  // file.
  static Result<std::unique_ptr<TlsCertificates>> load(const ServerConfig& config,
                                                       std::string protocol);

  // The context of the next connection, for TLS 1.2 or 1.3. A connection keeps its context.
  std::shared_ptr<ssl_ctx_st> context() const;

  // Reads the files again. On an error the old ones stay.
  Status reload();

 private:
  TlsCertificates(const ServerConfig& config, std::string protocol);

  const std::string certificates_, key_, client_certificates_;  // files
  const std::string protocol_;
  mutable std::mutex mutex_;  // guards context_
  std::shared_ptr<ssl_ctx_st> context_;
};

}  // namespace kivi
