#include "server/grpc/grpc_executor.h"

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <utility>

namespace kivi {

struct GrpcExecutor::Impl {
  explicit Impl(int threads) : pool(size_t(threads)) {}
  boost::asio::thread_pool pool;
};

GrpcExecutor::GrpcExecutor(int threads) : impl_(std::make_unique<Impl>(threads)) {}

GrpcExecutor::~GrpcExecutor() { stop(); }

void GrpcExecutor::post(std::function<void()> task) {
  boost::asio::post(impl_->pool, std::move(task));
}

void GrpcExecutor::after(std::chrono::milliseconds delay, std::function<void()> task) {
  auto timer = std::make_shared<boost::asio::steady_timer>(impl_->pool, delay);
  timer->async_wait([timer, task = std::move(task)](const boost::system::error_code& error) {
    if (!error) task();
  });
}

void GrpcExecutor::stop() {
  impl_->pool.stop();
  impl_->pool.join();
}

}  // namespace kivi
