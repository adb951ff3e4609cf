#include "server/grpc/grpc_service.h"

#include <fmt/format.h>
#include <grpcpp/server_context.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "base/version.h"
#include "kivi/v1/kivi.grpc.pb.h"
#include "server/auth.h"
#include "server/grpc/grpc_generation.h"
#include "server/request_id.h"
#include "server/tenant.h"

namespace kivi {
namespace {

std::string metadata_of(const grpc::CallbackServerContext& context, const char* key) {
  const auto it = context.client_metadata().find(key);
  if (it == context.client_metadata().end()) return {};
  return {it->second.data(), it->second.size()};
}

// Without keys the server is open.
bool authenticated(const ServerConfig& config, const grpc::CallbackServerContext& context) {
  return config.api_keys.empty() ||
         bearer_matches(config.api_keys, metadata_of(context, "authorization"));
}

std::optional<Clock::time_point> deadline_of(const grpc::CallbackServerContext& context,
                                             const ServerConfig& config,
                                             Clock::time_point arrival) {
  std::optional<Clock::time_point> deadline;
  if (config.request_timeout > 0) deadline = arrival + std::chrono::seconds(config.request_timeout);
  const auto until = context.deadline();
  if (until == std::chrono::system_clock::time_point::max()) return deadline;
  const auto left = until - std::chrono::system_clock::now();
  const auto own = arrival + std::chrono::duration_cast<Clock::duration>(left);
  return deadline ? std::min(*deadline, own) : own;
}

// Reads the metadata and echoes x-request-id. `wanted_id`: the request's own field, "" if it has
// none.
CallInfo begin_call(grpc::CallbackServerContext& context, const GrpcCore& core, const char* method,
                    const std::string& wanted_id) {
  CallInfo call;
  call.method = method;
  call.authenticated = authenticated(core.config(), context);
  call.tenant = core.config().api_keys.empty()
                    ? tenant_of_grpc_peer(context.peer())
                    : tenant_of_key(metadata_of(context, "authorization"));
  call.traceparent = metadata_of(context, "traceparent").substr(0, kMaxRequestIdBytes);
  call.deadline = deadline_of(context, core.config(), call.arrival);
  call.request_id = wanted_id.empty() ? metadata_of(context, "x-request-id") : wanted_id;
  if (!wanted_id.empty() && !usable_request_id(wanted_id))
    call.admitted = Error{ErrorCode::invalid,
                          fmt::format("request_id has {} bytes, must be 1 to {} printable ASCII "
                                      "characters without spaces",
                                      wanted_id.size(), kMaxRequestIdBytes),
                          "request_id"};
  if (!usable_request_id(call.request_id)) call.request_id = "cmpl-" + make_request_id();
  context.AddInitialMetadata("x-request-id", call.request_id);
  return call;
}

class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public Generation {
 public:
  static GenerateCall* make(GrpcCore& core, grpc::CallbackServerContext& context,
                            const v1::GenerateRequest& request) {
    auto call = std::make_shared<GenerateCall>(core, context, request);
    call->self_ = call;
    call->begin();
    return call.get();
  }
  GenerateCall(GrpcCore& core, grpc::CallbackServerContext& context,
               const v1::GenerateRequest& request)
      : Generation(core, begin_call(context, core, "/kivi.v1.Kivi/Generate", request.request_id()),
                   request, Delivery::stream),
        context_(context) {}

 private:
  void OnWriteDone(bool ok) override { written(ok); }
  void OnCancel() override { client_gone(); }
  void OnDone() override {
    done();
    self_.reset();
  }

  // The last message is a write of its own, not one with the status: it, too, is timed.
  bool write(std::vector<TextChunk>& chunks, const Usage* usage) override {
    message_.Clear();
    if (!std::exchange(begun_, true)) message_.set_request_id(call().request_id);
    append_chunks(chunks, with_logprobs(), *message_.mutable_choices());
    if (usage != nullptr) set_usage(*usage, *message_.mutable_usage());
    StartWrite(&message_);
    return true;
  }
  void finish(grpc::Status status) override { Finish(std::move(status)); }
  void drop() override { context_.TryCancel(); }

  grpc::CallbackServerContext& context_;
  std::shared_ptr<GenerateCall> self_;  // until the last reaction
  v1::GenerateResponse message_;        // the one in flight
  bool begun_ = false;
};

class CompleteCall final : public grpc::ServerUnaryReactor, public Generation {
 public:
  static CompleteCall* make(GrpcCore& core, grpc::CallbackServerContext& context,
                            const v1::GenerateRequest& request, v1::CompleteResponse& response) {
    auto call = std::make_shared<CompleteCall>(core, context, request, response);
    call->self_ = call;
    call->begin();
    return call.get();
  }
  CompleteCall(GrpcCore& core, grpc::CallbackServerContext& context,
               const v1::GenerateRequest& request, v1::CompleteResponse& response)
      : Generation(core, begin_call(context, core, "/kivi.v1.Kivi/Complete", request.request_id()),
                   request, Delivery::whole),
        response_(response) {}

 private:
  void OnCancel() override { client_gone(); }
  void OnDone() override {
    done();
    self_.reset();
  }

  bool write(std::vector<TextChunk>& chunks, const Usage* usage) override {
    append_chunks(chunks, with_logprobs(), *response_.mutable_choices());
    if (usage != nullptr) {
      std::ranges::sort(response_.mutable_choices()->pointer_begin(),
                        response_.mutable_choices()->pointer_end(), {}, &v1::Choice::index);
      response_.set_request_id(call().request_id);
      response_.set_model(model().name);
      response_.set_system_fingerprint(model().fingerprint);
      response_.set_created(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now()));
      set_usage(*usage, *response_.mutable_usage());
    }
    return false;
  }
  void finish(grpc::Status status) override { Finish(std::move(status)); }
  void drop() override {}  // nothing is in flight before the end

  v1::CompleteResponse& response_;
  std::shared_ptr<CompleteCall> self_;
};

class KiviService final : public v1::Kivi::CallbackService {
 public:
  explicit KiviService(GrpcCore& core) : core_(core) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    return GenerateCall::make(core_, *context, *request);
  }
  grpc::ServerUnaryReactor* Complete(grpc::CallbackServerContext* context,
                                     const v1::GenerateRequest* request,
                                     v1::CompleteResponse* response) override {
    return CompleteCall::make(core_, *context, *request, *response);
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return answer(*context, "/kivi.v1.Kivi/Tokenize", [this, request, response]() -> Status {
      KIVI_ASSIGN_OR_RETURN(const ServedModel* model, named_model(request->model()));
      const bool special = !request->has_add_special_tokens() || request->add_special_tokens();
      for (const int32_t id : model->tokenizer->encode(request->text(), special)) {
        response->add_token_ids(id);
        if (request->return_token_strings())
          response->add_token_strings(model->tokenizer->token_name(id));
      }
      response->set_max_model_len(model->max_model_len);
      return ok_status();
    });
  }
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return answer(*context, "/kivi.v1.Kivi/Detokenize", [this, request, response]() -> Status {
      KIVI_ASSIGN_OR_RETURN(const ServedModel* model, named_model(request->model()));
      const std::span<const int32_t> ids(request->token_ids().data(),
                                         size_t(request->token_ids_size()));
      KIVI_RETURN_IF_ERROR(check_token_ids(ids, model->tokenizer->vocab_size(), "token_ids"));
      response->set_text(model->tokenizer->decode(ids, request->skip_special_tokens()));
      return ok_status();
    });
  }

  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override {
    return answer(*context, "/kivi.v1.Kivi/Abort", [this, request, response]() -> Status {
      const int aborted = core_.abort(request->request_id());
      if (aborted == 0)
        return Error{ErrorCode::not_found,
                     fmt::format("no running call has request_id \"{}\"", request->request_id()),
                     "request_id"};
      response->set_aborted(aborted);
      return ok_status();
    });
  }

  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override {
    return answer(*context, "/kivi.v1.Kivi/GetModelInfo", [this, request, response]() -> Status {
      KIVI_ASSIGN_OR_RETURN(const ServedModel* model, named_model(request->model()));
      set_model_info(*model, *response);
      return ok_status();
    });
  }
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest*,
                                          v1::GetServerInfoResponse* response) override {
    return answer(*context, "/kivi.v1.Kivi/GetServerInfo", [this, response]() -> Status {
      set_server_info(*response);
      return ok_status();
    });
  }

 private:
  Result<const ServedModel*> named_model(const std::string& name) const {
    KIVI_ASSIGN_OR_RETURN(const ServedModel* model, core_.model());
    KIVI_RETURN_IF_ERROR(check_model_name(*model, name));
    return model;
  }

  // Runs `method` on the executor (tokenizing a long text takes long) and ends the call.
  grpc::ServerUnaryReactor* answer(grpc::CallbackServerContext& context, const char* name,
                                   std::function<Status()> method) {
    grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
    auto call = std::make_shared<CallInfo>(begin_call(context, core_, name, ""));
    core_.executor().post([this, reactor, call, method = std::move(method)] {
      grpc::Status status = unauthenticated_status();
      if (call->authenticated) {
        const Status result = method();
        status = result.ok() ? grpc::Status::OK : to_grpc_status(result.error());
      }
      call_handled(core_, *call, status.error_code());
      reactor->Finish(std::move(status));
    });
    return reactor;
  }

  static void set_model_info(const ServedModel& model, v1::GetModelInfoResponse& response) {
    const Tokenizer& tokenizer = *model.tokenizer;
    response.set_model(model.name);
    response.set_system_fingerprint(model.fingerprint);
    response.set_created(model.created);
    response.set_max_model_len(model.max_model_len);
    response.set_vocab_size(tokenizer.vocab_size());
    response.set_kv_cache_dtype(kivi::name_of(model.kv_format));
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
    const std::chrono::duration<double> up = Clock::now() - core_.started();
    response.set_uptime_seconds(up.count());
    const ServedModel* model = core_.loaded_model();
    response.set_state(core_.draining()   ? v1::SERVER_STATE_DRAINING
                       : model == nullptr ? v1::SERVER_STATE_LOADING
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
};

}  // namespace

std::unique_ptr<grpc::Service> make_grpc_service(GrpcCore& core) {
  return std::make_unique<KiviService>(core);
}

}  // namespace kivi
