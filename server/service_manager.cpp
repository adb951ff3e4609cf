// SPDX-License-Identifier: Apache-2.0
#include "server/service_manager.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/log.h"

namespace kivi {

void ServiceManager::ready(std::string_view status) const { send("READY=1\n", status); }

void ServiceManager::stopping(std::string_view status) const { send("STOPPING=1\n", status); }

void ServiceManager::status(std::string_view status) const { send("", status); }

// A manager that cannot be reached is logged and changes nothing: it will end the service itself
// when its time for the start is over.
void ServiceManager::send(std::string_view state, std::string_view status) const {
  if (socket_.empty()) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if ((socket_[0] != '/' && socket_[0] != '@') || socket_.size() >= sizeof address.sun_path) {
    log_warning("NOTIFY_SOCKET is \"{}\", must be a path or @NAME of at most {} bytes", socket_,
                sizeof address.sun_path - 1);
    return;
  }
  std::memcpy(address.sun_path, socket_.data(), socket_.size());
  if (socket_[0] == '@') address.sun_path[0] = '\0';  // an abstract socket's name begins with 0
  const auto length = socklen_t(offsetof(sockaddr_un, sun_path) + socket_.size());
  const std::string message = fmt::format("{}STATUS={}", state, status);
  const int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0 ||
      sendto(descriptor, message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
             reinterpret_cast<const sockaddr*>(&address), length) != ssize_t(message.size()))
    log_warning("NOTIFY_SOCKET \"{}\" takes no message: {}", socket_, std::strerror(errno));
  if (descriptor >= 0) close(descriptor);
}

}  // namespace kivi
