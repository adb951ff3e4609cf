// SPDX-License-Identifier: Apache-2.0
// TlsCertificates: the server's certificate and key, and the authorities of its clients, as OpenSSL
// wants them. They may be read again while the server runs.
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
  // Reads the ssl_* files of `config`; null where it names none. `protocol`: what ALPN takes ("h2",
  // "http/1.1"); a client that offers no protocol is taken. Errors name the field and the file.
  static Result<std::unique_ptr<TlsCertificates>> load(const ServerConfig& config,
                                                       std::string protocol);

  // What the next connection uses. TLS 1.2 or 1.3; a connection keeps what it began with.
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
