// SPDX-License-Identifier: Apache-2.0
// A small HTTP/1.1 client on a raw socket: what it sends is exactly what the test wrote. Every wait
// has a limit.
#pragma once

#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kivi::testing {

struct Response {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  nlohmann::json json() const;
  std::string header(const std::string& name) const;  // "" where it is absent
};

class Client {
 public:
  // receive_bytes: SO_RCVBUF, for a reader that is slow; 0: the system's.
  explicit Client(int port, int receive_bytes = 0);
  ~Client() { close(); }
  Client(Client&& other) noexcept;
  Client(const Client&) = delete;

  bool connected() const { return connected_; }
  void close();
  // Ends the connection with RST instead of FIN.
  void reset();

  // False: the other side has closed.
  bool send(std::string_view text);
  // Reads more into the buffer; false at the end of the stream or after `timeout`.
  bool fill(std::chrono::milliseconds timeout = std::chrono::seconds(20));
  // Up to and with `end`, which is taken out of the buffer.
  std::optional<std::string> read_until(std::string_view end);
  std::optional<std::string> read_bytes(size_t count);
  // Status line and headers.
  std::optional<Response> read_head();
  // The data of one chunk of a chunked body; "" for the last one.
  std::optional<std::string> read_chunk();
  // A whole response; none where the connection ended before. `head`: of a HEAD request.
  std::optional<Response> read_response(bool head = false);
  // Has the other side closed (and sent nothing more)? Waits up to `timeout`.
  bool closed(std::chrono::milliseconds timeout = std::chrono::seconds(20));

  std::optional<Response> get(const std::string& path, const std::string& headers = "");
  static std::string post_text(const std::string& path, const std::string& body,
                               const std::string& headers = "");
  std::optional<Response> post(const std::string& path, const std::string& body,
                               const std::string& headers = "");

 private:
  // Neither closed nor reset by the other side.
  bool open() const;

  int fd_ = -1;
  bool connected_ = false;
  std::string buffer_;
};

// The JSON of each `data:` event; the others as they are. "[DONE]" is a string.
std::vector<nlohmann::json> sse_events(const std::string& body);
// The text of choice `index` in a stream's events.
std::string sse_text(const std::vector<nlohmann::json>& events, int index = 0);

}  // namespace kivi::testing
