// SPDX-License-Identifier: Apache-2.0
#include "server/kv_event_publisher.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <deque>
#include <optional>
#include <random>
#include <span>
#include <string_view>
#include <thread>
#include <utility>
#include <zmq.hpp>

#include "base/log.h"
#include "server/kv_event_batch.h"
#include "server/kv_event_queue.h"

namespace kivi {
namespace {

constexpr size_t kBatchEvents = 256;
// What a subscriber that missed batches can ask for again: the newest batches within both limits.
constexpr size_t kRingBatches = 10'000;
constexpr size_t kRingBytes = size_t(64) << 20;
constexpr size_t kQueueEventsMin = 16'384;
constexpr int kSubscriberBatches = 100'000;  // that wait for a slow subscriber at most
constexpr int64_t kRequestBytesMax = 256;    // of a subscription or a request for a replay
constexpr int kLingerMs = 200;
constexpr uint64_t kEndOfReplay = ~uint64_t(0);  // -1

std::string big_endian(uint64_t value) {
  std::string bytes(8, '\0');
  for (size_t i = 8; i-- > 0; value >>= 8) bytes[i] = char(value & 0xff);
  return bytes;
}

uint64_t from_big_endian(std::string_view bytes) {
  uint64_t value = 0;
  for (const char c : bytes) value = value << 8 | uint8_t(c);
  return value;
}

// A server listens on its own addresses, and connects to a subscriber that collects the events of
// many servers.
bool is_bound(std::string_view endpoint) {
  constexpr std::array<std::string_view, 7> kOwn = {
      "ipc://",           "tcp://*:",   "tcp://0.0.0.0:", "tcp://[::]:",
      "tcp://localhost:", "tcp://127.", "tcp://[::1]:"};
  return std::ranges::any_of(kOwn, [&](std::string_view own) { return endpoint.starts_with(own); });
}

bool has_port(std::string_view endpoint) {
  const std::string_view digits = endpoint.substr(endpoint.rfind(':') + 1);
  int port = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  return error == std::errc() && end == digits.data() + digits.size() && port > 0 && port < 65536;
}

Error refused(const char* flag, const std::string& endpoint, const std::string& why) {
  return Error{
      ErrorCode::invalid,
      fmt::format("--{} is \"{}\", must be a ZeroMQ endpoint such as tcp://*:5557 that can "
                  "be opened: {}",
                  flag, endpoint, why),
      flag};
}

Status open_socket(zmq::socket_t& socket, const char* flag, const std::string& endpoint,
                   bool bound) {
  if (!endpoint.starts_with("tcp://") && !endpoint.starts_with("ipc://"))
    return refused(flag, endpoint, "it begins with neither tcp:// nor ipc://");
  if (endpoint.starts_with("tcp://") && !has_port(endpoint))  // ZeroMQ takes 65537 as 1
    return refused(flag, endpoint, "its port is not a number from 1 to 65535");
  try {
    socket.set(zmq::sockopt::ipv6, endpoint.find('[') != std::string::npos);
    socket.set(zmq::sockopt::linger, kLingerMs);
    socket.set(zmq::sockopt::maxmsgsize, kRequestBytesMax);
    if (bound)
      socket.bind(endpoint);
    else
      socket.connect(endpoint);
  } catch (const zmq::error_t& e) {
    return refused(flag, endpoint, e.what());
  }
  return ok_status();
}

class ZmqPublisher : public KvEventPublisher {
 public:
  ~ZmqPublisher() override {
    if (!thread_.joinable()) return;
    stopping_ = true;
    queue_.wake();
    thread_.join();
  }

  Status open_sockets(const std::string& endpoint, const std::string& replay_endpoint) {
    publisher_.set(zmq::sockopt::sndhwm, kSubscriberBatches);
    KIVI_RETURN_IF_ERROR(
        open_socket(publisher_, "kv-events-endpoint", endpoint, is_bound(endpoint)));
    if (replay_endpoint.empty()) return ok_status();
    replay_.emplace(context_, zmq::socket_type::router);
    replay_->set(zmq::sockopt::sndhwm, int(kRingBatches) + 1);
    return open_socket(*replay_, "kv-events-replay-endpoint", replay_endpoint,
                       /*bound=*/true);
  }

  PrefixObserver& observer() override { return queue_; }

  void start(const std::string& topic, size_t blocks_max) override {
    topic_ = topic;
    queue_.set_capacity(std::max(kQueueEventsMin, 2 * blocks_max));
    thread_ = std::thread([this] { run(); });
  }

  KvEventCounts counts() const override {
    return {.batches = batches_.load(), .events = events_.load(), .dropped = queue_.dropped()};
  }

 private:
  struct Sent {
    uint64_t sequence;
    std::string payload;
  };

  void run() {
    try {
      while (!stopping_) {
        std::array<zmq::pollitem_t, 2> items = {
            {{nullptr, queue_.descriptor(), ZMQ_POLLIN, 0},
             {replay_ ? replay_->handle() : nullptr, -1, ZMQ_POLLIN, 0}}};
        if (!wait(items)) continue;
        if (items[0].revents != 0) publish_all(queue_.take());
        if (replay_ && items[1].revents != 0) answer_replay();
      }
      publish_all(queue_.take());
    } catch (const std::exception& e) {  // ZeroMQ's, or memory
      log_error("KV events end: {}", e.what());
    }
  }

  // False: a signal came first.
  bool wait(std::array<zmq::pollitem_t, 2>& items) {
    try {
      zmq::poll(items.data(), replay_ ? 2 : 1, std::chrono::milliseconds(-1));
    } catch (const zmq::error_t& e) {
      if (e.num() != EINTR) throw;
      return false;
    }
    return true;
  }

  void publish_all(const std::vector<KvEvent>& events) {
    std::span<const KvEvent> left(events);
    while (!left.empty()) {
      // A subscriber sees a loss as a sequence number that never comes.
      if (left.front().kind == KvEvent::Kind::lost) ++sequence_;
      const size_t count = std::min(left.size(), kBatchEvents);
      size_t end = 1;
      while (end < count && left[end].kind != KvEvent::Kind::lost) ++end;
      publish(left.first(end));
      left = left.subspan(end);
    }
  }

  void publish(std::span<const KvEvent> events) {
    const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
    std::string payload = encode_kv_batch(now.count(), events, hashes_);
    const uint64_t sequence = sequence_++;
    publisher_.send(zmq::buffer(topic_), zmq::send_flags::sndmore);
    publisher_.send(zmq::buffer(big_endian(sequence)), zmq::send_flags::sndmore);
    publisher_.send(zmq::buffer(payload), zmq::send_flags::none);
    ++batches_;
    events_ += events.size();
    if (!replay_) return;
    ring_bytes_ += payload.size();
    ring_.push_back({sequence, std::move(payload)});
    while (ring_.size() > kRingBatches || ring_bytes_ > kRingBytes) {
      ring_bytes_ -= ring_.front().payload.size();
      ring_.pop_front();
    }
  }

  // A request is (sender, "", first sequence number). The answers are (sender, "", number, payload)
  // for each batch from there on, and number -1 with no payload at the end.
  void answer_replay() {
    std::vector<zmq::message_t> frames;
    for (bool more = true; more;) {
      zmq::message_t frame;
      if (!replay_->recv(frame, zmq::recv_flags::dontwait)) return;
      more = frame.more();
      frames.push_back(std::move(frame));
    }
    if (frames.size() != 3 || frames[1].size() != 0 || frames[2].size() != 8) {
      log_warning(
          "KV events: a request for a replay has {} frames, must have 3, the last of 8 bytes",
          frames.size());
      return;
    }
    const std::string to = frames[0].to_string();
    const uint64_t first = from_big_endian(frames[2].to_string_view());
    const auto answer = [&](uint64_t sequence, const std::string& payload) {
      for (const std::string& frame : {to, std::string(), big_endian(sequence)})
        replay_->send(zmq::buffer(frame), zmq::send_flags::sndmore | zmq::send_flags::dontwait);
      replay_->send(zmq::buffer(payload), zmq::send_flags::dontwait);
    };
    for (const Sent& sent : ring_)
      if (sent.sequence >= first) answer(sent.sequence, sent.payload);
    answer(kEndOfReplay, {});
  }

  std::string topic_;
  const BlockHashes hashes_{uint64_t(std::random_device()()) << 32 | std::random_device()()};
  KvEventQueue queue_{kQueueEventsMin};
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> batches_{0}, events_{0};
  // The thread's own, once it runs.
  zmq::context_t context_{1};
  zmq::socket_t publisher_{context_, zmq::socket_type::pub};
  std::optional<zmq::socket_t> replay_;
  std::deque<Sent> ring_;
  size_t ring_bytes_ = 0;
  uint64_t sequence_ = 0;
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<KvEventPublisher>> KvEventPublisher::open(
    const std::string& endpoint, const std::string& replay_endpoint) {
  auto publisher = std::make_unique<ZmqPublisher>();
  KIVI_RETURN_IF_ERROR(publisher->open_sockets(endpoint, replay_endpoint));
  return std::unique_ptr<KvEventPublisher>(std::move(publisher));
}

}  // namespace kivi
