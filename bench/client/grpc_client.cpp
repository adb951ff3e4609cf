// SPDX-License-Identifier: Apache-2.0
#include "bench/client/grpc_client.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "kivi/v1/kivi.grpc.pb.h"
#include "proto/status_name.h"

namespace kivi::load {
namespace asio = boost::asio;

namespace {

std::shared_ptr<grpc::Channel> open_channel(const std::string& target) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else channels share a connection
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

void set_up(grpc::ClientContext& context, const std::string& api_key, double timeout_s) {
  if (!api_key.empty()) context.AddMetadata("authorization", "Bearer " + api_key);
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::microseconds(int64_t(timeout_s * 1e6)));
}

// One stream. Owns itself from start() to OnDone; then `done` runs on the io thread.
class Call : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Call(RequestRecord& record, RunState& run, int cancel_after)
      : record_(record), run_(run), cancel_after_(cancel_after) {}

  void start(v1::Kivi::Stub& stub, const v1::GenerateRequest& request, std::function<void()> done) {
    done_ = std::move(done);
    stub.async()->Generate(&context_, &request, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    const double now = run_.now();
    for (const v1::Choice& choice : response_.choices()) {
      finished_ |= choice.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
      tokens_ += choice.token_ids_size();
      if (choice.token_ids_size() == 0) continue;
      note_token(record_, now);
      run_.tokens.fetch_add(choice.token_ids_size(), std::memory_order_relaxed);
    }
    if (response_.has_usage()) {
      record_.prompt_tokens = response_.usage().prompt_tokens();
      record_.output_tokens = response_.usage().completion_tokens();
      record_.server_count = true;
    }
    if (cancel_after_ > 0 && tokens_ >= cancel_after_ && !finished_) {
      cancelled_ = true;
      context_.TryCancel();
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    const double now = run_.now();
    if (cancelled_) {
      record_.outcome = Outcome::cancelled;
      record_.output_tokens = tokens_;
      record_.ended = now;
    } else if (status.ok() && finished_) {
      note_completed(record_, now);
    } else if (status.ok()) {
      note_failed(record_, "bad reply", "the stream has no finish_reason", now);
    } else {
      const bool late = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
      note_failed(record_, late ? "timeout" : fmt::format("gRPC {}", name_of(status.error_code())),
                  late ? "no whole reply within --timeout" : status.error_message(), now);
    }
    const auto done = std::move(done_);
    done();
  }

  grpc::ClientContext& context() { return context_; }

 private:
  grpc::ClientContext context_;
  v1::GenerateResponse response_;
  RequestRecord& record_;
  RunState& run_;
  const int cancel_after_;
  std::function<void()> done_;
  int tokens_ = 0;
  bool finished_ = false, cancelled_ = false;
};

class GrpcClient : public LoadClient {
 public:
  GrpcClient(asio::io_context& io, const std::string& target, RequestOptions options)
      : io_(io), options_(std::move(options)), stub_(v1::Kivi::NewStub(open_channel(target))) {}

  std::string prepare(const LoadRequest& request) const override {
    v1::GenerateRequest message;
    message.set_model(options_.model);
    if (request.ids.empty())
      message.set_text(request.text);
    else
      message.mutable_token_ids()->mutable_ids()->Assign(request.ids.begin(), request.ids.end());
    message.set_max_tokens(request.max_tokens);
    message.set_ignore_eos(options_.ignore_eos);
    if (options_.temperature) message.set_temperature(float(*options_.temperature));
    return message.SerializeAsString();
  }

  bool has_own_threads() const override { return true; }  // gRPC's callbacks

  Task<> send(const LoadRequest& request, std::string prepared, RequestRecord& record,
              RunState& run) override {
    v1::GenerateRequest message;
    message.ParseFromString(prepared);
    Call call(record, run, request.cancel_after);
    set_up(call.context(), options_.api_key, options_.timeout_s);
    // A wait that only the call's end ends; that is posted, so it comes after the wait has begun.
    Timer end(io_, Timer::time_point::max());
    call.start(*stub_, message, [this, &end] { asio::post(io_, [&end] { end.cancel(); }); });
    co_await end.async_wait(asio::as_tuple_t<asio::use_awaitable_t<Executor>>());
  }

 private:
  asio::io_context& io_;
  const RequestOptions options_;
  const std::unique_ptr<v1::Kivi::Stub> stub_;
};

}  // namespace

Result<GrpcModelInfo> grpc_model_info(const std::string& target, const std::string& api_key,
                                      double timeout_s) {
  const auto stub = v1::Kivi::NewStub(open_channel(target));
  grpc::ClientContext context;
  set_up(context, api_key, timeout_s);
  v1::GetModelInfoResponse response;
  const grpc::Status status = stub->GetModelInfo(&context, {}, &response);
  if (!status.ok())
    return Error{ErrorCode::unavailable,
                 fmt::format("gRPC at {}: {}: {}", target, name_of(status.error_code()),
                             status.error_message())};
  return GrpcModelInfo{response.model(), response.vocab_size()};
}

std::unique_ptr<LoadClient> make_grpc_client(asio::io_context& io, const std::string& target,
                                             RequestOptions options) {
  return std::make_unique<GrpcClient>(io, target, std::move(options));
}

}  // namespace kivi::load
