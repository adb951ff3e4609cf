// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/header_limit.h"

#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <mutex>
#include <unordered_map>

#include "base/log.h"
#include "server/grpc/log_gate.h"

namespace kivi {
namespace {

constexpr std::byte kHeaders{1}, kContinuation{9};
constexpr std::byte kEndHeaders{4};

// Tells a socket from a later one with the same number.
struct Identity {
  dev_t device = 0;
  ino_t inode = 0;
  bool operator==(const Identity&) const = default;
};

Identity identity_of(int descriptor) {
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) return {};
  return {info.st_dev, info.st_ino};
}

struct Followed {
  Identity identity;
  HeaderBlockCounter counter;
};

// A part of the sockets that are followed, by their numbers: readers of different connections
// seldom wait for each other. A closed socket's entry goes when its number is used again.
struct Shard {
  std::mutex mutex;
  std::unordered_map<int, Followed> sockets;
};

Shard& shard_of(int descriptor) {
  static std::array<Shard, 64> shards;
  return shards[size_t(descriptor) % shards.size()];
}

void log_end() {
  static LogGate gate;
  if (gate.open())
    log_warning("gRPC: a connection is ended: its headers have more than {} bytes",
                kHeaderBlockBytesMax);
}

// False: what was received must not reach the reader.
bool follow(int descriptor, const msghdr& message, size_t received) {
  Shard& shard = shard_of(descriptor);
  const std::lock_guard lock(shard.mutex);
  const auto found = shard.sockets.find(descriptor);
  if (found == shard.sockets.end()) return true;
  if (found->second.identity != identity_of(descriptor)) {
    shard.sockets.erase(found);
    return true;
  }
  for (size_t i = 0; i < message.msg_iovlen && received > 0; ++i) {
    const size_t bytes = std::min(received, message.msg_iov[i].iov_len);
    received -= bytes;
    if (!found->second.counter.take(
            {static_cast<const std::byte*>(message.msg_iov[i].iov_base), bytes})) {
      shard.sockets.erase(found);
      return false;
    }
  }
  return true;
}

}  // namespace

bool HeaderBlockCounter::take(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (skip_ > 0) {
      const size_t skipped = size_t(std::min<uint64_t>(skip_, bytes.size()));
      skip_ -= skipped;
      bytes = bytes.subspan(skipped);
      continue;
    }
    head_[head_bytes_++] = bytes.front();
    bytes = bytes.subspan(1);
    if (head_bytes_ == int(std::size(head_)) && !begin_frame()) return false;
  }
  return true;
}

bool HeaderBlockCounter::begin_frame() {
  head_bytes_ = 0;
  skip_ = std::to_integer<uint64_t>(head_[0]) << 16 | std::to_integer<uint64_t>(head_[1]) << 8 |
          std::to_integer<uint64_t>(head_[2]);
  if (head_[3] != kHeaders && head_[3] != kContinuation) return true;
  block_bytes_ += std::size(head_) + skip_;
  if (block_bytes_ > kHeaderBlockBytesMax) return false;
  if ((head_[4] & kEndHeaders) != std::byte{0}) block_bytes_ = 0;
  return true;
}

void limit_header_blocks(int descriptor) {
  Shard& shard = shard_of(descriptor);
  const std::lock_guard lock(shard.mutex);
  shard.sockets.insert_or_assign(descriptor, Followed{identity_of(descriptor), {}});
}

}  // namespace kivi

// NOLINTBEGIN(bugprone-reserved-identifier): the linker's names.
extern "C" ssize_t __real_recvmsg(int descriptor, msghdr* message, int flags);

extern "C" ssize_t __wrap_recvmsg(int descriptor, msghdr* message, int flags) {
  const ssize_t received = __real_recvmsg(descriptor, message, flags);
  if (received <= 0 || (flags & MSG_PEEK) != 0 ||
      kivi::follow(descriptor, *message, size_t(received)))
    return received;
  kivi::log_end();
  ::shutdown(descriptor, SHUT_RDWR);
  errno = ECONNRESET;
  return -1;
}
// NOLINTEND(bugprone-reserved-identifier)
