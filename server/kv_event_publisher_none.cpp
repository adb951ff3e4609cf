// SPDX-License-Identifier: Apache-2.0
// The publisher of a build without ZeroMQ.
#include "server/kv_event_publisher.h"

namespace kivi {

Result<std::unique_ptr<KvEventPublisher>> KvEventPublisher::open(const std::string& endpoint,
                                                                 const std::string&) {
  return Error{ErrorCode::unsupported,
               "--kv-events-endpoint is \"" + endpoint +
                   "\", must be empty, because this build has no ZeroMQ (install libzmq3-dev and "
                   "cppzmq-dev and build again)",
               "kv-events-endpoint"};
}

}  // namespace kivi
