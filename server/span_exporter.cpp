// SPDX-License-Identifier: Apache-2.0
#include "server/span_exporter.h"

#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/version.h"
#include "server/json_writer.h"

namespace kivi {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kQueueSpans = 2048;
constexpr size_t kBatchSpans = 256;
constexpr milliseconds kGather{200};  // for more spans of a batch
constexpr milliseconds kNetworkTime{2000};
constexpr seconds kFirstPause{1}, kLongestPause{30};  // after a failure

struct Endpoint {
  std::string host, port, path;
};

// "http://collector:4318/v1/traces".
Result<Endpoint> parse_url(const std::string& url) {
  const auto wrong = [&] {
    return Error{
        ErrorCode::invalid,
        fmt::format("otlp_traces_endpoint is \"{}\", must be http://HOST[:PORT][/PATH]", url),
        "otlp_traces_endpoint"};
  };
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme)) return wrong();
  const bool clean = std::ranges::all_of(url, [](char c) { return c > ' ' && c < 0x7f; });
  std::string_view rest = std::string_view(url).substr(kScheme.size());
  const size_t slash = std::min(rest.find('/'), rest.size());
  Endpoint endpoint;
  endpoint.path = slash + 1 >= rest.size() ? "/v1/traces" : std::string(rest.substr(slash));
  std::string_view host = rest.substr(0, slash);
  const size_t bracket = host.find(']');
  const size_t colon = host.find(':', bracket == std::string_view::npos ? 0 : bracket);
  endpoint.port = colon == std::string_view::npos ? "4318" : std::string(host.substr(colon + 1));
  endpoint.host = host.substr(0, colon);
  if (endpoint.host.size() > 2 && endpoint.host.front() == '[' && endpoint.host.back() == ']')
    endpoint.host = endpoint.host.substr(1, endpoint.host.size() - 2);
  const bool number = !endpoint.port.empty() && endpoint.port.size() <= 5 &&
                      endpoint.port.find_first_not_of("0123456789") == std::string::npos;
  if (!clean || endpoint.host.empty() || !number) return wrong();
  return endpoint;
}

class Socket {
 public:
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  ~Socket() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int get() const { return descriptor_; }

  bool wait(short events) const {
    pollfd waiting{descriptor_, events, 0};
    return ::poll(&waiting, 1, int(kNetworkTime.count())) > 0;
  }

 private:
  const int descriptor_;
};

bool connect_within(const Socket& s, const addrinfo& address) {
  if (s.get() < 0) return false;
  if (::connect(s.get(), address.ai_addr, address.ai_addrlen) == 0) return true;
  int error = 0;
  socklen_t size = sizeof error;
  return errno == EINPROGRESS && s.wait(POLLOUT) &&
         ::getsockopt(s.get(), SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}

bool send_all(const Socket& s, std::string_view text) {
  while (!text.empty()) {
    const ssize_t sent = ::send(s.get(), text.data(), text.size(), MSG_NOSIGNAL);
    if (sent > 0)
      text.remove_prefix(size_t(sent));
    else if (errno != EAGAIN || !s.wait(POLLOUT))
      return false;
  }
  return true;
}

// The status of a reply, or 0.
int read_status(const Socket& s) {
  std::string head;
  while (head.size() < 12) {
    if (!s.wait(POLLIN)) return 0;
    char bytes[512];
    const ssize_t got = ::recv(s.get(), bytes, sizeof bytes, 0);
    if (got <= 0) return 0;
    head.append(bytes, size_t(got));
  }
  return head.starts_with("HTTP/1.") ? std::atoi(head.substr(9, 3).c_str()) : 0;
}

// Returns "" or what went wrong.
std::string post(const Endpoint& to, const std::string& body) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(to.host.c_str(), to.port.c_str(), &hints, &found) != 0)
    return fmt::format("{} cannot be resolved", to.host);
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, &freeaddrinfo);
  const std::string request = fmt::format(
      "POST {} HTTP/1.1\r\nHost: {}:{}\r\nUser-Agent: kivi/" KIVI_VERSION
      "\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
      to.path, to.host, to.port, body.size());
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    const Socket s(
        ::socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol));
    if (!connect_within(s, *a)) continue;
    if (!send_all(s, request) || !send_all(s, body)) return "the collector does not read";
    const int status = read_status(s);
    if (status >= 200 && status < 300) return "";
    return status == 0 ? "the collector does not reply"
                       : fmt::format("the collector replies with status {}", status);
  }
  return fmt::format("{}:{} cannot be reached", to.host, to.port);
}

int64_t nanoseconds(std::chrono::system_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

void append_span(std::string& out, const RequestSpan& span) {
  constexpr int kServer = 2, kError = 2;
  out += fmt::format("{{\"traceId\":\"{}\",\"spanId\":\"{}\",", span.trace.trace_id,
                     span.trace.span_id);
  if (!span.trace.parent_id.empty())
    out += fmt::format("\"parentSpanId\":\"{}\",", span.trace.parent_id);
  out += "\"name\":";
  append_json_string(out, span.name);
  out += fmt::format(
      ",\"kind\":{},\"startTimeUnixNano\":\"{}\",\"endTimeUnixNano\":\"{}\",\"attributes\":[",
      kServer, nanoseconds(span.begin), nanoseconds(span.end));
  out += span.attributes;
  out += fmt::format("],\"status\":{{\"code\":{}}}}}", span.failed ? kError : 0);
}

std::string batch_json(const std::vector<RequestSpan>& batch) {
  std::string out =
      R"({"resourceSpans":[{"resource":{"attributes":[)"
      R"({"key":"service.name","value":{"stringValue":"kivi"}},)"
      R"({"key":"service.version","value":{"stringValue":")" KIVI_VERSION R"("}}]},)"
      R"("scopeSpans":[{"scope":{"name":"kivi","version":")" KIVI_VERSION R"("},"spans":)";
  append_json_list(out, batch, [&](const RequestSpan& span) { append_span(out, span); });
  out += "}]}]}";
  return out;
}

}  // namespace

struct SpanExporter::Impl {
  const Endpoint endpoint;
  mutable std::mutex mutex;  // guards the queue and the flags
  std::condition_variable changed;
  std::deque<RequestSpan> queue;
  bool stopping = false, ended = false;
  std::atomic<int64_t> dropped{0};

  explicit Impl(Endpoint to) : endpoint(std::move(to)) {}

  // Waits for spans. Empty: the exporter stops, and nothing is left.
  std::vector<RequestSpan> next_batch() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return stopping || !queue.empty(); });
    changed.wait_for(lock, kGather, [&] { return stopping || queue.size() >= kBatchSpans; });
    const size_t count = std::min(queue.size(), kBatchSpans);
    std::vector<RequestSpan> batch(std::make_move_iterator(queue.begin()),
                                   std::make_move_iterator(queue.begin() + ptrdiff_t(count)));
    queue.erase(queue.begin(), queue.begin() + ptrdiff_t(count));
    return batch;
  }

  // Leaves the collector alone for a while, so that a dead one costs next to nothing.
  void pause(seconds time) {
    std::unique_lock lock(mutex);
    changed.wait_for(lock, time, [&] { return stopping; });
  }

  void run() {
    seconds wait = kFirstPause;
    bool reachable = true;
    for (std::vector<RequestSpan> batch = next_batch(); !batch.empty(); batch = next_batch()) {
      const std::string problem = post(endpoint, batch_json(batch));
      if (problem.empty()) {
        if (!std::exchange(reachable, true)) log_info("traces: the collector takes spans again");
        wait = kFirstPause;
        continue;
      }
      dropped += int64_t(batch.size());
      if (std::exchange(reachable, false))
        log_warning("traces: {}: spans are dropped until it answers", problem);
      pause(wait);
      wait = std::min(2 * wait, kLongestPause);
    }
    const std::lock_guard lock(mutex);
    ended = true;
    changed.notify_all();
  }
};

SpanExporter::SpanExporter(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<SpanExporter>> SpanExporter::make(const std::string& url) {
  KIVI_ASSIGN_OR_RETURN(Endpoint endpoint, parse_url(url));
  auto impl = std::make_shared<Impl>(std::move(endpoint));
  std::thread([impl] { impl->run(); }).detach();
  return std::unique_ptr<SpanExporter>(new SpanExporter(std::move(impl)));
}

SpanExporter::~SpanExporter() {
  std::unique_lock lock(impl_->mutex);
  impl_->stopping = true;
  impl_->changed.notify_all();
  impl_->changed.wait_for(lock, kFlushTime, [&] { return impl_->ended; });
}

bool SpanExporter::has_room() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->queue.size() < kQueueSpans;
}

void SpanExporter::add(RequestSpan span) {
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->queue.size() < kQueueSpans) {
      impl_->queue.push_back(std::move(span));
      impl_->changed.notify_all();
      return;
    }
  }
  drop();
}

void SpanExporter::drop() { ++impl_->dropped; }

int64_t SpanExporter::dropped() const { return impl_->dropped; }

}  // namespace kivi
