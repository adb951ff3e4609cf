// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_executor.h"

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <new>
#include <utility>

#include "base/log.h"

namespace kivi {

std::optional<ApiError> run_guarded(const std::function<Status()>& task) {
  try {
    const Status done = task();
    if (done.ok()) return std::nullopt;
    return to_api_error(done.error());
  } catch (const std::bad_alloc&) {
    return ApiError{kOutOfMemory, "the server has no memory left for this request"};
  } catch (const std::exception& e) {
    log_error("a gRPC call ended by an exception: {}", e.what());
    return ApiError{kInternalError, "the request failed"};
  }
}

struct GrpcExecutor::Impl {
  explicit Impl(int threads) : pool(size_t(threads)) {}
  boost::asio::thread_pool pool;
};

GrpcExecutor::GrpcExecutor(int threads) : impl_(std::make_unique<Impl>(threads)) {}

GrpcExecutor::~GrpcExecutor() { stop(); }

void GrpcExecutor::post(std::function<void()> task) {
  boost::asio::post(impl_->pool, [task = std::move(task)] {
    try {
      task();
    } catch (const std::exception& e) {
      log_error("a gRPC task ended by an exception: {}", e.what());
    }
  });
}

void GrpcExecutor::after(std::chrono::milliseconds delay, std::function<void()> task) {
  auto timer = std::make_shared<boost::asio::steady_timer>(impl_->pool, delay);
  // Nothing cancels a timer: one that has not fired when the pool ends is destroyed.
  timer->async_wait([timer, task = std::move(task)](const boost::system::error_code&) {
    try {
      task();
    } catch (const std::exception& e) {
      log_error("a gRPC timer ended by an exception: {}", e.what());
    }
  });
}

void GrpcExecutor::stop() {
  impl_->pool.stop();
  impl_->pool.join();
}

}  // namespace kivi
