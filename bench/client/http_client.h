// SPDX-License-Identifier: Apache-2.0
// HttpClient streams from an OpenAI-compatible server over HTTP/1.1, on connections that it keeps
// alive.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <memory>
#include <string>
#include <vector>

#include "bench/client/client.h"
#include "bench/client/openai_body.h"

namespace kivi::load {

class HttpClient : public LoadClient {
 public:
  // `path`: "/v1/completions" or "/v1/chat/completions".
  HttpClient(boost::asio::io_context& io, Endpoint endpoint, std::string path,
             RequestOptions options);
  ~HttpClient() override;

  std::string prepare(const LoadRequest& request) const override;
  Task<> send(const LoadRequest& request, std::string prepared, RequestRecord& record,
              RunState& run) override;

  // The reply to a request that is not streamed. Error: the server cannot be reached, or sends no
  // reply in time.
  struct Reply {
    int status = 0;
    std::string body;
  };
  Task<Result<Reply>> get(const std::string& path);

 private:
  struct Connection;
  struct Exchange;

  Task<> connect(Connection& connection, Exchange& exchange);
  Task<> perform(std::string message, Exchange& exchange);
  Task<bool> transfer(Connection& connection, const std::string& message, Exchange& exchange);
  // Reads a connection to the end of a reply. Returns false if it was closed before its first byte.
  Task<bool> read_reply(Connection& connection, Exchange& exchange);

  boost::asio::io_context& io_;
  const Endpoint endpoint_;
  const std::string path_;
  const RequestOptions options_;
  std::vector<boost::asio::ip::tcp::endpoint> addresses_;  // of endpoint_, once it is resolved
  std::vector<std::shared_ptr<Connection>> idle_;          // the last one was used last
};

// Returns the reply to GET `path`. Blocks the calling thread. Errors are those of HttpClient::get.
Result<HttpClient::Reply> http_get(const Endpoint& endpoint, const std::string& path,
                                   const std::string& api_key, double timeout_s);

}  // namespace kivi::load
