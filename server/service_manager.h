// SPDX-License-Identifier: Apache-2.0
// ServiceManager tells systemd what the service does (sd_notify(3), Type=notify). It speaks the
// protocol itself: one datagram of lines NAME=VALUE to a Unix socket.
#pragma once

#include <string>
#include <string_view>

namespace kivi {

class ServiceManager {
 public:
  // `socket` is the value of NOTIFY_SOCKET: a path, or @NAME for an abstract socket. If it is empty
  // nobody is told anything.
  explicit ServiceManager(std::string socket = {}) : socket_(std::move(socket)) {}

  // Requests are served from now on.
  void ready(std::string_view status) const;
  void stopping(std::string_view status) const;
  // One line for `systemctl status`.
  void status(std::string_view status) const;

 private:
  void send(std::string_view state, std::string_view status) const;

  std::string socket_;
};

}  // namespace kivi
