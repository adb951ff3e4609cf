// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_service.h"

#include <fmt/format.h>
#include <grpc/support/time.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/impl/codegen/server_callback_handlers.h>
#include <grpcpp/impl/rpc_service_method.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/server_context.h>

#include <algorithm>
#include <functional>
#include <string_view>
#include <utility>

#include "base/version.h"
#include "kivi/v1/kivi.pb.h"
#include "server/auth.h"
#include "server/gateway.h"
#include "server/grpc/grpc_generation.h"
#include "server/grpc/request_message.h"
#include "server/grpc/timed_reply.h"
#include "server/request_id.h"
#include "server/tenant.h"

namespace kivi {
namespace {

std::string metadata_of(const grpc::CallbackServerContext& context, std::string_view key) {
  const auto it = context.client_metadata().find({key.data(), key.size()});
  if (it == context.client_metadata().end()) return {};
  return {it->second.data(), it->second.size()};
}

std::optional<Clock::time_point> deadline_of(const grpc::CallbackServerContext& context,
                                             const ServerConfig& config,
                                             Clock::time_point arrival) {
  std::optional<Clock::time_point> deadline;
  if (config.request_timeout > 0) deadline = arrival + std::chrono::seconds(config.request_timeout);
  // Not context.deadline(): a time_point counts nanoseconds, so a deadline of more than 292 years
  // overflows it. Such a deadline is none.
  const gpr_timespec left =
      gpr_time_sub(gpr_convert_clock_type(context.raw_deadline(), GPR_CLOCK_REALTIME),
                   gpr_now(GPR_CLOCK_REALTIME));
  constexpr std::chrono::hours kNoDeadline{24 * 365 * 100};
  if (left.tv_sec >= std::chrono::seconds(kNoDeadline).count()) return deadline;
  const auto own =
      arrival + std::chrono::seconds(left.tv_sec) + std::chrono::nanoseconds(left.tv_nsec);
  return deadline ? std::min(*deadline, own) : own;
}

// Reads the headers. The request's id is settled later, when its message has arrived.
CallInfo begin_call(const grpc::CallbackServerContext& context, const GrpcCore& core,
                    const char* method) {
  CallInfo call;
  call.method = method;
  call.tenant = core.state.keys().open() ? tenant_of_address(core.judge(context.peer()))
                                         : tenant_of_key(metadata_of(context, "authorization"));
  for (const auto& [name, field] : {std::pair{kObjectiveHeader, &call.objective},
                                    std::pair{kFairnessHeader, &call.fairness_id}}) {
    *field = metadata_of(context, name);
    if (!usable_request_id(*field)) field->clear();
  }
  if (std::string tenant = tenant_of_fairness_id(core.state.config(), call.fairness_id);
      !tenant.empty())
    call.tenant = std::move(tenant);
  const std::string traceparent = metadata_of(context, "traceparent");
  if (core.state.span_exporter() != nullptr || usable_traceparent(traceparent))
    call.trace = make_trace_context(traceparent);
  call.deadline = deadline_of(context, core.state.config(), call.arrival);
  call.request_id = metadata_of(context, "x-request-id");
  if (!usable_request_id(call.request_id)) call.request_id.clear();
  return call;
}

// Echoes the id of a call whose reply begins now. An error without a message before it has the id
// in its trailers and no initial metadata: a client or a proxy repeats a call elsewhere only if the
// first that it sees of the reply is the status (gRPC's retry policies, Envoy's retry_on).
void echo_request_id(grpc::CallbackServerContext& context, const std::string& id, bool ok) {
  if (id.empty()) return;
  if (ok)
    context.AddInitialMetadata("x-request-id", id);
  else
    context.AddTrailingMetadata("x-request-id", id);
}

// Ends a call by its headers alone.
template <class Response>
class RefusedCall final : public grpc::ServerBidiReactor<grpc::ByteBuffer, Response> {
 public:
  explicit RefusedCall(grpc::Status status) { this->Finish(std::move(status)); }

 private:
  void OnDone() override { delete this; }
};

// What the calls share that run in the engine: the object lives from make() to the last reaction of
// gRPC.
template <class Request, class Response>
class GenerationCall : public grpc::ServerBidiReactor<grpc::ByteBuffer, Response>,
                       public Generation {
 public:
  template <class Call>
  static Call* make(GrpcCore& core, grpc::CallbackServerContext& context) {
    auto call = std::make_shared<Call>(core, context);
    call->self_ = call;
    call->ticket_ = core.waiting().add(std::chrono::seconds(core.state.config().header_timeout),
                                       [weak = std::weak_ptr(call)] {
                                         if (const auto self = weak.lock()) self->late();
                                       });
    call->StartRead(call->incoming());
    return call.get();
  }

 protected:
  GenerationCall(GrpcCore& core, grpc::CallbackServerContext& context, const char* method,
                 Delivery delivery)
      : Generation(core, begin_call(context, core, method), request_, delivery),
        core_(core),
        context_(context) {}

  const Request& request() const { return request_; }
  // Whether a message was sent.
  bool begun() const { return begun_; }
  // Sends `response`, which must live until the write is done. The last message, too, is a write of
  // its own and not one with the status, so that it is timed. Returns what write() does.
  size_t send(const Response& response) {
    if (!std::exchange(begun_, true)) echo_request_id(context_, call().request_id, true);
    this->StartWrite(&response);
    return std::max<size_t>(1, response.ByteSizeLong());
  }

 private:
  void finish(grpc::Status status) override {
    if (!begun_) echo_request_id(context_, call().request_id, status.ok());
    this->Finish(std::move(status));
  }
  void drop() override { context_.TryCancel(); }
  const std::string& wanted_id() const override { return request_.request_id(); }
  void OnReadDone(bool ok) override {
    core_.waiting().remove(ticket_);
    ok ? begin() : unreadable();
  }
  void OnWriteDone(bool ok) override { written(ok); }
  void OnCancel() override { client_gone(); }
  void OnDone() override {
    done();
    self_.reset();
  }

  GrpcCore& core_;
  grpc::CallbackServerContext& context_;
  std::shared_ptr<GenerationCall> self_;  // until the last reaction
  WaitingCalls::Ticket ticket_;           // of the read
  Request request_;
  bool begun_ = false;
};

bool with_logprobs(const v1::GenerateRequest& request) {
  return request.has_logprobs() && request.logprobs() >= 0;
}

class GenerateCall final : public GenerationCall<v1::GenerateRequest, v1::GenerateResponse> {
 public:
  static constexpr const char* kMethod = "/kivi.v1.Kivi/Generate";
  GenerateCall(GrpcCore& core, grpc::CallbackServerContext& context)
      : GenerationCall(core, context, kMethod, Delivery::stream) {}

 private:
  Result<CompletionRequest> read(const ServedModel& model) const override {
    return to_completion_request(request(), model, Delivery::stream);
  }
  size_t write(std::vector<TextChunk>& chunks, const Usage* usage) override {
    message_.Clear();
    if (!begun()) message_.set_request_id(call().request_id);
    append_chunks(chunks, with_logprobs(request()), *message_.mutable_choices());
    if (usage != nullptr) set_usage(*usage, *message_.mutable_usage());
    return send(message_);
  }

  v1::GenerateResponse message_;  // the one in flight
};

class CompleteCall final : public GenerationCall<v1::GenerateRequest, v1::CompleteResponse> {
 public:
  static constexpr const char* kMethod = "/kivi.v1.Kivi/Complete";
  CompleteCall(GrpcCore& core, grpc::CallbackServerContext& context)
      : GenerationCall(core, context, kMethod, Delivery::whole) {}

 private:
  Result<CompletionRequest> read(const ServedModel& model) const override {
    return to_completion_request(request(), model, Delivery::whole);
  }
  size_t write(std::vector<TextChunk>& chunks, const Usage* usage) override {
    append_chunks(chunks, with_logprobs(request()), *response_.mutable_choices());
    if (usage == nullptr) return 0;
    std::ranges::sort(response_.mutable_choices()->pointer_begin(),
                      response_.mutable_choices()->pointer_end(), {}, &v1::Choice::index);
    response_.set_request_id(call().request_id);
    response_.set_model(model().name);
    response_.set_system_fingerprint(model().fingerprint);
    response_.set_created(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now()));
    set_usage(*usage, *response_.mutable_usage());
    return send(response_);
  }

  v1::CompleteResponse response_;
};

class EmbedCall final : public GenerationCall<v1::EmbedRequest, v1::EmbedResponse> {
 public:
  static constexpr const char* kMethod = "/kivi.v1.Kivi/Embed";
  EmbedCall(GrpcCore& core, grpc::CallbackServerContext& context)
      : GenerationCall(core, context, kMethod, Delivery::whole) {}

 private:
  Result<CompletionRequest> read(const ServedModel& model) const override {
    return to_completion_request(request(), model);
  }
  size_t write(std::vector<TextChunk>& chunks, const Usage* usage) override {
    auto& embeddings = *response_.mutable_embeddings();
    while (embeddings.size() < request().inputs_size()) embeddings.Add();
    for (const TextChunk& chunk : chunks)
      embeddings[chunk.choice].mutable_values()->Add(chunk.embedding.begin(),
                                                     chunk.embedding.end());
    if (usage == nullptr) return 0;
    response_.set_request_id(call().request_id);
    response_.set_model(model().name);
    set_usage(*usage, *response_.mutable_usage());
    return send(response_);
  }

  v1::EmbedResponse response_;
};

// A method that ends at once: read, answered on the executor (tokenizing a long text takes long).
template <class Request, class Response>
class AnsweredCall final : public TimedReply<Response> {
  using Base = TimedReply<Response>;

 public:
  using Method = std::function<Status(const Request&, Response&)>;

  static AnsweredCall* make(GrpcCore& core, grpc::CallbackServerContext& context, const char* name,
                            Method method) {
    auto call = std::make_shared<AnsweredCall>(core, context, name, std::move(method));
    call->self_ = call;
    const ServerConfig& config = core.state.config();
    call->ticket_ = core.waiting().add(std::chrono::seconds(config.header_timeout),
                                       [weak = std::weak_ptr(call), &config] {
                                         if (const auto self = weak.lock())
                                           self->end(late_message_status(config));
                                       });
    call->StartRead(call->request_message_.incoming());
    return call.get();
  }
  AnsweredCall(GrpcCore& core, grpc::CallbackServerContext& context, const char* name,
               Method method)
      : Base(core, context),
        call_(begin_call(context, core, name)),
        method_(std::move(method)),
        request_message_(request_, core.state.body_budget()) {}

 private:
  using Base::context_;
  using Base::core_;

  void OnReadDone(bool ok) override {
    if (!core_.waiting().remove(ticket_)) return;
    const bool held = ok && request_message_.arrived();
    core_.executor_of(request_message_).post([self = self_, ok, held] { self->answer(ok, held); });
  }
  void replied(bool ok) override { this->Finish(ok ? grpc::Status::OK : grpc::Status::CANCELLED); }
  void OnDone() override { self_.reset(); }

  void answer(bool readable, bool held) {
    grpc::Status status = grpc::Status::OK;
    const auto failure = run_guarded([&]() -> kivi::Status {
      status = judge(readable, held);
      return status.ok() ? method_(request_, response_) : ok_status();
    });
    if (failure) status = to_grpc_status(*failure);
    // A reply that nobody reads must not keep the message.
    request_message_.drop();
    echo_request_id(context_, call_.request_id, status.ok());
    end(std::move(status));
  }
  // Parses the message, and says what speaks against an answer.
  grpc::Status judge(bool readable, bool held) {
    if (!readable) return unreadable_status(call_.method);
    if (!held) return over_budget_status(core_);
    // A call that nobody waits for any more costs nothing.
    if (context_.IsCancelled()) return grpc::Status::CANCELLED;
    if (grpc::Status parsed = parse_message(core_, call_.method, request_message_); !parsed.ok())
      return parsed;
    const Status named = adopt_request_id(call_, "");
    return named.ok() ? grpc::Status::OK : to_grpc_status(named.error());
  }
  // Once: after the message has been read, or because it is late.
  void end(grpc::Status status) {
    call_handled(core_, call_, status.error_code());
    status.ok() ? this->reply(response_) : this->Finish(std::move(status));
  }

  CallInfo call_;
  const Method method_;
  std::shared_ptr<AnsweredCall> self_;  // until the last reaction
  WaitingCalls::Ticket ticket_;         // of the read
  Request request_;                     // until the answer is known
  RequestMessage request_message_;
  Response response_;
};

// Every method is registered as a stream in both directions, whatever the .proto says. On the wire
// there is no difference. In the library there is: of a unary or server-streaming call it reads the
// message (up to max_body_bytes) before it tells us of the call; of a stream it reads nothing until
// StartRead. So a call without a key ends by its headers, and its message is never taken.
// It hands the message over as bytes, so that they are counted before they are parsed.
// The classes in grpc::internal are those that generated code uses.
class KiviService final : public grpc::Service {
 public:
  explicit KiviService(GrpcCore& core) : core_(core) {
    add<v1::GenerateResponse>(GenerateCall::kMethod, [this](auto& context) {
      return GenerateCall::make<GenerateCall>(core_, context);
    });
    add<v1::CompleteResponse>(CompleteCall::kMethod, [this](auto& context) {
      return CompleteCall::make<CompleteCall>(core_, context);
    });
    add<v1::EmbedResponse>(EmbedCall::kMethod, [this](auto& context) {
      return EmbedCall::make<EmbedCall>(core_, context);
    });
    answer<v1::TokenizeRequest, v1::TokenizeResponse>("/kivi.v1.Kivi/Tokenize",
                                                      &KiviService::tokenize);
    answer<v1::DetokenizeRequest, v1::DetokenizeResponse>("/kivi.v1.Kivi/Detokenize",
                                                          &KiviService::detokenize);
    answer<v1::AbortRequest, v1::AbortResponse>("/kivi.v1.Kivi/Abort", &KiviService::abort);
    answer<v1::GetModelInfoRequest, v1::GetModelInfoResponse>("/kivi.v1.Kivi/GetModelInfo",
                                                              &KiviService::get_model_info);
    answer<v1::GetServerInfoRequest, v1::GetServerInfoResponse>("/kivi.v1.Kivi/GetServerInfo",
                                                                &KiviService::get_server_info);
  }

 private:
  // `make`: (grpc::CallbackServerContext&) -> the call's reactor.
  template <class Response, class Make>
  void add(const char* name, Make make) {
    using Reactor = grpc::ServerBidiReactor<grpc::ByteBuffer, Response>;
    AddMethod(new grpc::internal::RpcServiceMethod(name, grpc::internal::RpcMethod::BIDI_STREAMING,
                                                   nullptr));
    MarkMethodCallback(
        added_++, new grpc::internal::CallbackBidiHandler<grpc::ByteBuffer, Response>(
                      [this, name, make](grpc::CallbackServerContext* context) -> Reactor* {
                        if (core_.state.keys().match(metadata_of(*context, "authorization"))) {
                          core_.judge(context->peer());
                          return make(*context);
                        }
                        grpc::Status status = to_grpc_status(
                            ApiError{kInvalidApiKey,
                                     "metadata `authorization` must be \"Bearer KEY\" with a key "
                                     "of this server"});
                        call_handled(core_, begin_call(*context, core_, name), status.error_code());
                        return new RefusedCall<Response>(std::move(status));
                      }));
  }
  template <class Request, class Response>
  void answer(const char* name, Status (KiviService::*method)(const Request&, Response&)) {
    add<Response>(name, [this, name, method](grpc::CallbackServerContext& context) {
      return AnsweredCall<Request, Response>::make(
          core_, context, name, [this, method](const Request& request, Response& response) {
            return (this->*method)(request, response);
          });
    });
  }

  Status tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse& response) {
    KIVI_ASSIGN_OR_RETURN(const ServedModel* model, named_model(request.model()));
    KIVI_RETURN_IF_ERROR(check_text_bytes(request.text().size(), *model, "text"));
    const bool special = !request.has_add_special_tokens() || request.add_special_tokens();
    for (const int32_t id : model->tokenizer->encode(request.text(), special)) {
      response.add_token_ids(id);
      if (request.return_token_strings())
        response.add_token_strings(model->tokenizer->token_name(id));
    }
    response.set_max_model_len(model->max_model_len);
    return ok_status();
  }
  Status detokenize(const v1::DetokenizeRequest& request, v1::DetokenizeResponse& response) {
    KIVI_ASSIGN_OR_RETURN(const ServedModel* model, named_model(request.model()));
    const std::span<const int32_t> ids(request.token_ids().data(),
                                       size_t(request.token_ids_size()));
    KIVI_RETURN_IF_ERROR(check_token_ids(ids, model->tokenizer->vocab_size(), "token_ids"));
    response.set_text(model->tokenizer->decode(ids, request.skip_special_tokens()));
    return ok_status();
  }
  Status abort(const v1::AbortRequest& request, v1::AbortResponse& response) {
    const int aborted = core_.abort(request.request_id());
    if (aborted == 0)
      return Error{ErrorCode::not_found,
                   fmt::format("no running call has request_id \"{}\"", request.request_id()),
                   "request_id"};
    response.set_aborted(aborted);
    return ok_status();
  }
  Status get_model_info(const v1::GetModelInfoRequest& request,
                        v1::GetModelInfoResponse& response) {
    KIVI_ASSIGN_OR_RETURN(const ServedModel* model, named_model(request.model()));
    set_model_info(*model, response);
    return ok_status();
  }
  Status get_server_info(const v1::GetServerInfoRequest&, v1::GetServerInfoResponse& response) {
    set_server_info(response);
    return ok_status();
  }

  Result<const ServedModel*> named_model(const std::string& name) const {
    KIVI_ASSIGN_OR_RETURN(const ServedModel* model, core_.model());
    KIVI_RETURN_IF_ERROR(check_model_name(*model, name));
    return model;
  }

  static void set_model_info(const ServedModel& model, v1::GetModelInfoResponse& response) {
    const Tokenizer& tokenizer = *model.tokenizer;
    response.set_model(model.name);
    response.set_system_fingerprint(model.fingerprint);
    response.set_created(model.created);
    response.set_max_model_len(model.max_model_len);
    response.set_vocab_size(tokenizer.vocab_size());
    response.set_kv_cache_dtype(kv_format_name(model));
    response.set_max_logprobs(model.engine->config().max_logprobs);
    if (tokenizer.bos_id()) response.set_bos_token_id(*tokenizer.bos_id());
    for (const int32_t id : model.engine->model().eos_token_ids) response.add_eos_token_ids(id);
    response.set_tokenizer(tokenizer.kind());
    const SamplingParams standard;
    response.set_default_temperature(model.default_temperature.value_or(standard.temperature));
    response.set_default_top_p(model.default_top_p.value_or(standard.top_p));
    response.set_default_top_k(model.default_top_k.value_or(standard.top_k));
  }

  void set_server_info(v1::GetServerInfoResponse& response) const {
    response.set_version(KIVI_VERSION);
    const std::chrono::duration<double> up = Clock::now() - core_.state.started();
    response.set_uptime_seconds(up.count());
    const ServedModel* model = core_.state.model();
    response.set_state(core_.state.leaving_or_draining() ? v1::SERVER_STATE_DRAINING
                       : model == nullptr                ? v1::SERVER_STATE_LOADING
                                                         : v1::SERVER_STATE_SERVING);
    if (model == nullptr) return;
    const EngineStats stats = model->engine->stats();
    response.set_requests_running(stats.running);
    response.set_requests_waiting(stats.waiting);
    if (stats.kv_pages_total > 0)
      response.set_kv_cache_usage(double(stats.kv_pages_total - stats.kv_pages_free) /
                                  double(stats.kv_pages_total));
    response.set_kv_cache_tokens_capacity(stats.kv_pages_total *
                                          KvLayout{model->kv_format, {}}.page_tokens());
  }

  GrpcCore& core_;
  int added_ = 0;  // methods
};

}  // namespace

std::unique_ptr<grpc::Service> make_grpc_service(GrpcCore& core) {
  return std::make_unique<KiviService>(core);
}

}  // namespace kivi
