// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/received_bytes.h"

// The kernel's header, because the C library's tcp_info lacks the count. The two cannot be in one
// source, and Asio includes the other one.
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace kivi {

uint64_t received_bytes(int descriptor) {
  tcp_info info{};
  socklen_t length = sizeof(info);
  if (getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return 0;
  return info.tcpi_bytes_received;
}

}  // namespace kivi
