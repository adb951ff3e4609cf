// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_core.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <vector>

#include "server/grpc/grpc_generation.h"
#include "server/long_work.h"

namespace kivi {

GrpcCore::GrpcCore(ServerState& shared)
    : state(shared),
      executor_(std::max(1, shared.config().io_threads)),
      long_executor_(long_work_threads(shared.config())),
      waiting_(executor_) {}

GrpcCore::~GrpcCore() { stop(); }

void GrpcCore::stop() {
  executor_.stop();
  long_executor_.stop();
}

Result<const ServedModel*> GrpcCore::model() const {
  if (state.draining())
    return Error{ErrorCode::unavailable, "the server is shutting down and takes no new requests"};
  const ServedModel* model = state.model();
  if (model == nullptr) return Error{ErrorCode::unavailable, "the model is loading"};
  return model;
}

void GrpcCore::add(const std::string& request_id, const std::shared_ptr<Generation>& call) {
  std::lock_guard lock(mutex_);
  calls_.emplace(request_id, call);
}

void GrpcCore::remove(const std::string& request_id, const Generation* call) {
  std::lock_guard lock(mutex_);
  const auto [begin, end] = calls_.equal_range(request_id);
  const auto it =
      std::find_if(begin, end, [&](const auto& e) { return e.second.lock().get() == call; });
  if (it != end) calls_.erase(it);
}

int GrpcCore::abort(const std::string& request_id) {
  std::vector<std::shared_ptr<Generation>> found;
  {
    std::lock_guard lock(mutex_);
    const auto [begin, end] = calls_.equal_range(request_id);
    for (auto it = begin; it != end; ++it)
      if (auto call = it->second.lock()) found.push_back(std::move(call));
  }
  for (const auto& call : found) call->abort();
  return int(found.size());
}

int GrpcCore::running() const {
  std::lock_guard lock(mutex_);
  return int(calls_.size());
}

std::string GrpcCore::judge(const std::string& peer) const {
  constexpr std::string_view kName = "fd:";
  int descriptor = -1;
  if (!judge_ || !peer.starts_with(kName)) return "local";
  std::from_chars(peer.data() + kName.size(), peer.data() + peer.size(), descriptor);
  const std::string address = judge_(descriptor);
  return address.empty() ? "local" : address;
}

}  // namespace kivi
