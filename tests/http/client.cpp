// SPDX-License-Identifier: Apache-2.0
#include "tests/http/client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <utility>

namespace kivi::testing {

nlohmann::json Response::json() const { return nlohmann::json::parse(body); }

std::string Response::header(const std::string& name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? "" : it->second;
}

Client::Client(int port, int receive_bytes) {
  fd_ = socket(AF_INET, SOCK_STREAM, 0);
  if (receive_bytes > 0)
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
  const int one = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(uint16_t(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
}

Client::Client(Client&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      connected_(other.connected_),
      buffer_(std::move(other.buffer_)) {}

void Client::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void Client::reset() {
  const linger hard{1, 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close();
}

bool Client::send(std::string_view text) {
  while (!text.empty()) {
    const ssize_t sent = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    text.remove_prefix(size_t(sent));
  }
  return true;
}

bool Client::fill(std::chrono::milliseconds timeout) {
  pollfd waiting{fd_, POLLIN, 0};
  if (poll(&waiting, 1, int(timeout.count())) <= 0) return false;
  char bytes[16384];
  const ssize_t got = recv(fd_, bytes, sizeof bytes, 0);
  if (got <= 0) return false;
  buffer_.append(bytes, size_t(got));
  return true;
}

std::optional<std::string> Client::read_until(std::string_view end) {
  size_t at;
  while ((at = buffer_.find(end)) == std::string::npos)
    if (!fill()) return std::nullopt;
  std::string text = buffer_.substr(0, at + end.size());
  buffer_.erase(0, at + end.size());
  return text;
}

std::optional<std::string> Client::read_bytes(size_t count) {
  while (buffer_.size() < count)
    if (!fill()) return std::nullopt;
  std::string text = buffer_.substr(0, count);
  buffer_.erase(0, count);
  return text;
}

std::optional<Response> Client::read_head() {
  const auto head = read_until("\r\n\r\n");
  if (!head) return std::nullopt;
  Response response;
  response.status = std::stoi(head->substr(9, 3));
  size_t line = head->find("\r\n") + 2;
  while (line + 2 < head->size()) {
    const size_t end = head->find("\r\n", line), colon = head->find(':', line);
    if (colon == std::string::npos || colon > end) break;
    std::string name = head->substr(line, colon - line);
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
    response.headers[name] = head->substr(colon + 2, end - colon - 2);
    line = end + 2;
  }
  return response;
}

std::optional<std::string> Client::read_chunk() {
  const auto size = read_until("\r\n");
  if (!size) return std::nullopt;
  auto data = read_bytes(std::stoul(*size, nullptr, 16) + 2);
  if (data) data->resize(data->size() - 2);
  return data;
}

std::optional<Response> Client::read_response(bool head) {
  auto response = read_head();
  if (!response || head || response->status == 204) return response;
  if (response->header("transfer-encoding") == "chunked") {
    for (;;) {
      const auto chunk = read_chunk();
      if (!chunk) return std::nullopt;
      if (chunk->empty()) return response;
      response->body += *chunk;
    }
  }
  if (!response->headers.contains("content-length")) {
    while (fill()) {
    }
    response->body = std::exchange(buffer_, "");
    return response;
  }
  const auto body = read_bytes(std::stoul(response->header("content-length")));
  if (!body) return std::nullopt;
  response->body = *body;
  return response;
}

bool Client::closed(std::chrono::milliseconds timeout) {
  return !fill(timeout) && buffer_.empty() && !open();
}

std::optional<Response> Client::get(const std::string& path, const std::string& headers) {
  send("GET " + path + " HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n");
  return read_response();
}

std::string Client::post_text(const std::string& path, const std::string& body,
                              const std::string& headers) {
  return "POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" +
         "Content-Length: " + std::to_string(body.size()) + "\r\n" + headers + "\r\n" + body;
}

std::optional<Response> Client::post(const std::string& path, const std::string& body,
                                     const std::string& headers) {
  send(post_text(path, body, headers));
  return read_response();
}

bool Client::open() const {
  char byte;
  const ssize_t got = recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got > 0 || (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK));
}

std::vector<nlohmann::json> sse_events(const std::string& body) {
  std::vector<nlohmann::json> events;
  for (size_t at = 0; at < body.size();) {
    size_t end = body.find("\n\n", at);
    if (end == std::string::npos) end = body.size();
    const std::string event = body.substr(at, end - at);
    if (event.rfind("data: [DONE]", 0) == 0)
      events.push_back("[DONE]");
    else if (event.rfind("data: ", 0) == 0)
      events.push_back(nlohmann::json::parse(event.substr(6)));
    at = end + 2;
  }
  return events;
}

std::string sse_text(const std::vector<nlohmann::json>& events, int index) {
  std::string text;
  for (const nlohmann::json& event : events)
    if (event.is_object() && event.contains("choices"))
      for (const nlohmann::json& choice : event["choices"])
        if (choice["index"] == index) text += choice["text"].get<std::string>();
  return text;
}

}  // namespace kivi::testing
