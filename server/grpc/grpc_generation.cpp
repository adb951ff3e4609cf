// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "proto/status_name.h"
#include "server/gateway.h"
#include "server/request_id.h"

namespace kivi {
namespace {

// The client's clock began before ours: its own deadline ends the call a little before our count of
// it does.
constexpr std::chrono::milliseconds kDeadlineSlack(50);

bool carries_nothing(const TextChunk& chunk) {
  return chunk.text.empty() && chunk.tokens.empty() && !chunk.finish;
}

const Error* find_error(const std::vector<TextChunk>& chunks) {
  for (const TextChunk& chunk : chunks)
    if (chunk.error) return &*chunk.error;
  return nullptr;
}

bool was_aborted(const std::vector<TextChunk>& chunks) {
  return std::ranges::any_of(chunks,
                             [](const TextChunk& c) { return c.finish == FinishReason::abort; });
}

bool has_tokens(const std::vector<TextChunk>& chunks) {
  return std::ranges::any_of(chunks, [](const TextChunk& c) { return !c.tokens.empty(); });
}

}  // namespace

void call_handled(GrpcCore& core, const CallInfo& call, grpc::StatusCode code,
                  std::optional<RequestAsked> asked, std::optional<RequestFigures> figures) {
  core.state.metrics().grpc_handled(call.method, name_of(code));
  if (!wants_records(core.state)) return;
  const bool failed = code == grpc::StatusCode::INTERNAL || code == grpc::StatusCode::UNKNOWN ||
                      code == grpc::StatusCode::UNAVAILABLE;
  record_request(core.state, {"gRPC", "", call.method, name_of(code), failed, call.arrival,
                              call.request_id, call.tenant, call.trace, std::move(asked),
                              std::move(figures), call.objective, call.fairness_id});
}

Status adopt_request_id(CallInfo& call, const std::string& wanted) {
  const bool usable = usable_request_id(wanted);
  if (usable) call.request_id = wanted;
  if (!usable_request_id(call.request_id)) call.request_id = "cmpl-" + make_request_id();
  if (wanted.empty() || usable) return ok_status();
  return Error{ErrorCode::invalid,
               fmt::format("request_id has {} bytes, must be 1 to {} printable ASCII characters "
                           "without spaces",
                           wanted.size(), kMaxRequestIdBytes),
               "request_id"};
}

grpc::Status unreadable_status(const char* method) {
  return to_grpc_status(
      ApiError{kMalformedRequest,
               fmt::format("the request message of {} is missing or cannot be parsed", method)});
}

grpc::Status late_message_status(const ServerConfig& config) {
  return to_grpc_status(ApiError{
      kRequestTimeout,
      fmt::format("the request message did not arrive within {} s", config.header_timeout)});
}

grpc::Status over_budget_status(GrpcCore& core) {
  core.state.metrics().admission_rejected("body_bytes");
  return to_grpc_status(
      ApiError{kTooManyBodyBytes,
               fmt::format("the bodies and messages of all requests together would exceed {} bytes "
                           "(--max-body-bytes-in-flight)",
                           core.state.body_budget().limit())});
}

grpc::Status parse_message(GrpcCore& core, const char* method, RequestMessage& message) {
  switch (message.parse()) {
    case RequestMessage::Parsed::whole:
      return grpc::Status::OK;
    case RequestMessage::Parsed::malformed:
      return unreadable_status(method);
    case RequestMessage::Parsed::over_budget:
      break;
  }
  return over_budget_status(core);
}

Generation::Generation(GrpcCore& core, CallInfo call, google::protobuf::Message& message,
                       Delivery delivery)
    : core_(core),
      call_(std::move(call)),
      delivery_(delivery),
      request_message_(message, core.state.body_budget()) {}

void Generation::begin() {
  note(request_message_.arrived() ? &Events::begun : &Events::over_budget);
}

void Generation::unreadable() { note(&Events::unreadable); }

void Generation::late() { note(&Events::late); }

void Generation::written(bool ok) {
  if (!ok) note(&Events::write_failed);
  note(&Events::written);
}

void Generation::client_gone() { note(&Events::gone); }

void Generation::abort() { note(&Events::aborted); }

void Generation::done() { core_.remove(call_.request_id, this); }

void Generation::note(bool Events::*what) {
  {
    std::lock_guard lock(mutex_);
    events_.*what = true;
    if (std::exchange(scheduled_, true)) return;
  }
  // The turn that begins the call parses and tokenizes. Only then is the message ours to look at.
  GrpcExecutor& executor =
      what == &Events::begun ? core_.executor_of(request_message_) : core_.executor();
  executor.post([self = shared_from_this()] { self->turn(); });
}

void Generation::turn() {
  Events events;
  {
    std::lock_guard lock(mutex_);
    events = std::exchange(events_, {});
  }
  const std::optional<ApiError> failure = run_guarded([&]() -> Status {
    run(events);
    return ok_status();
  });
  if (failure && !finished_) {
    if (completion_) completion_->cancel();
    if (writing_)
      gone_ = true;  // the call ends when its write is done
    else
      conclude(to_grpc_status(*failure));
  }
  {
    std::lock_guard lock(mutex_);
    if (!events_.any()) {
      scheduled_ = false;
      return;
    }
  }
  // Queued again instead of looping: other calls get their turn.
  core_.executor().post([self = shared_from_this()] { self->turn(); });
}

void Generation::run(const Events& events) {
  if (events.timer) timer_armed_ = false;
  if (events.begun) arrived_ = true;
  if (finished_) return drop_message();
  if (events.written) writing_ = false;
  if (events.gone || events.write_failed) gone_ = true;
  if (gone_) return end_for_gone_client();
  if (events.unreadable) return conclude(unreadable_status(call_.method));
  if (events.late && !events.begun && !events.over_budget && model_ == nullptr)
    return conclude(late_message_status(core_.state.config()));
  if (events.over_budget) return conclude(over_budget_status(core_));
  if (events.begun) start();
  if (finished_ || completion_ == nullptr) return;
  if (ended_ && !writing_) return conclude(grpc::Status::OK);
  if (events.aborted && !ended_) {
    core_.state.metrics().request_aborted("api");
    completion_->cancel();
  }
  if (!writing_) pump();
  if (writing_) watch_writer();
}

// Admits the call and hands it to the engine, or ends it with what is wrong.
void Generation::start() {
  if (grpc::Status parsed = parse_message(core_, call_.method, request_message_); !parsed.ok())
    return conclude(std::move(parsed));
  const Status admitted = adopt_request_id(call_, wanted_id());
  core_.add(call_.request_id, shared_from_this());
  if (!admitted.ok()) return conclude(to_grpc_status(admitted.error()));
  const auto model = core_.model();
  if (!model.ok()) {
    core_.state.metrics().admission_rejected(core_.state.draining() ? "draining" : "loading");
    return conclude(to_grpc_status(model.error()));
  }
  model_ = *model;
  if (const Status known = check_known_fields(request_message_.message()); !known.ok()) {
    if (core_.state.config().strict_params) return conclude(to_grpc_status(known.error()));
    core_.state.note_unknown_fields({known.error().field});
  }
  if (const auto over = core_.state.admit(call_.tenant, permit_))
    return conclude(to_grpc_status(*over));
  auto request = read(*model_);
  if (!request.ok()) return conclude(to_grpc_status(request.error()));
  request->id = call_.request_id;
  request->arrival = call_.arrival;
  request->tenant = call_.tenant;
  if (const auto priority = priority_of_objective(core_.state.config(), call_.objective))
    request->priority = *priority;
  request->deadline = call_.deadline;
  pools_ = request->pooling != Pooling::none;
  asked_ = asked_of(*request, pools_ ? "embeddings" : "text_completion");
  // The Completion may call after this object is gone: it holds no share of it.
  auto completion = Completion::start(*model_, std::move(*request), [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->note(&Events::ready);
  });
  if (!completion.ok()) {
    Error error = completion.error();
    core_.state.metrics().admission_rejected(error);
    if (pools_ && error.field == "prompt") error.field = "inputs";
    return conclude(to_grpc_status(error));
  }
  completion_ = std::move(*completion);
  metrics_.emplace(core_.state.metrics(), call_.arrival);
}

// Takes what the Completion has and sends it. No write is in flight.
void Generation::pump() {
  chunks_.clear();
  const bool ended = completion_->poll(chunks_);
  metrics_->polled(*completion_, chunks_);
  count_usage();
  if (const Error* error = find_error(chunks_)) {
    // One choice failed: the call has, whatever the others would still say.
    if (error->code == ErrorCode::deadline) core_.state.metrics().request_aborted("deadline");
    return conclude(to_grpc_status(*error));
  }
  if (core_.state.draining() && was_aborted(chunks_))
    core_.state.metrics().request_aborted("shutdown");
  if (pools_ && was_aborted(chunks_))
    return conclude(to_grpc_status(Error{ErrorCode::unavailable, "the request was aborted"}));
  std::erase_if(chunks_, carries_nothing);
  if (delivery_ == Delivery::stream && has_tokens(chunks_)) metrics_->first_write();
  if (!ended && chunks_.empty()) return;
  const Usage usage = completion_->usage();
  ended_ = ended;
  write_started_ = Clock::now();
  const size_t bytes = write(chunks_, ended ? &usage : nullptr);
  writing_ = bytes > 0;
  write_limit_ = write_limit(core_.state.config(), bytes);
  if (ended) drop_message();
}

// The client decides when its call ends, and must not keep the message until then. Before
// begin() was seen, the read may still fill it.
void Generation::drop_message() {
  if (std::exchange(arrived_, false)) request_message_.drop();
}

// Gives up on a reader that leaves a message unread for too long. One timer a call, lazily moved.
void Generation::watch_writer() {
  const auto waited = Clock::now() - write_started_;
  if (waited >= write_limit_ && !std::exchange(dropped_, true)) {
    completion_->cancel();
    return drop();
  }
  if (timer_armed_ || dropped_) return;
  timer_armed_ = true;
  const auto rest = std::chrono::ceil<std::chrono::milliseconds>(write_limit_ - waited);
  core_.executor().after(rest, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->note(&Events::timer);
  });
}

void Generation::end_for_gone_client() {
  if (completion_) completion_->cancel();
  if (writing_) return;  // written(false) follows
  const bool late = call_.deadline && Clock::now() + kDeadlineSlack >= *call_.deadline;
  if (completion_)
    core_.state.metrics().request_aborted(dropped_ ? "slow_reader"
                                          : late   ? "deadline"
                                                   : "client_disconnect");
  conclude(late ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "the deadline has passed")
                : grpc::Status(grpc::StatusCode::CANCELLED, "the client is gone"));
}

void Generation::count_usage() {
  const Usage usage = completion_->usage();
  permit_.used(int64_t(usage.prompt_tokens) + usage.completion_tokens);
}

void Generation::conclude(grpc::Status status) {
  finished_ = true;
  if (completion_) {
    metrics_->finished(*completion_);
    count_usage();
  }
  permit_.reset();
  drop_message();
  if (completion_)
    call_handled(core_, call_, status.error_code(), asked_, metrics_->figures());
  else
    call_handled(core_, call_, status.error_code());
  finish(std::move(status));
  completion_.reset();  // cancels what is unfinished
}

}  // namespace kivi
