// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_standard.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/impl/codegen/server_callback_handlers.h>
#include <grpcpp/impl/rpc_service_method.h>
#include <grpcpp/server_context.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "grpc/health/v1/health.pb.h"
#include "grpc/reflection/v1/reflection.pb.h"
#include "server/grpc/grpc_generation.h"
#include "server/grpc/timed_reply.h"

namespace kivi {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::FileDescriptor;
using grpc::reflection::v1::ServerReflectionRequest;
using grpc::reflection::v1::ServerReflectionResponse;

constexpr const char* kServices[] = {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
                                     "grpc.reflection.v1alpha.ServerReflection", "kivi.v1.Kivi"};

constexpr size_t kQuestionMax = 16 << 10;  // bytes; answers may repeat it

// Answers each message of a stream with one message. A client that sends none for header_timeout
// seconds, or leaves an answer unread, ends its stream.
template <class Request, class Response>
class AnsweringCall final : public TimedReply<Response> {
  using Base = TimedReply<Response>;

 public:
  using Answer = std::function<void(const Request&, Response&)>;

  static AnsweringCall* make(GrpcCore& core, grpc::CallbackServerContext& context, Answer answer) {
    auto call = std::make_shared<AnsweringCall>(core, context, std::move(answer));
    call->self_ = call;
    call->read();
    return call.get();
  }
  AnsweringCall(GrpcCore& core, grpc::CallbackServerContext& context, Answer answer)
      : Base(core, context), answer_(std::move(answer)) {}

 private:
  using Base::core_;

  void read() {
    const ServerConfig& config = core_.state.config();
    ticket_ = core_.waiting().add(std::chrono::seconds(config.header_timeout),
                                  [weak = this->weak_from_this(), &config] {
                                    if (const auto self = weak.lock())
                                      self->Finish(late_message_status(config));
                                  });
    this->StartRead(&question_);
  }
  void OnReadDone(bool ok) override {
    if (!core_.waiting().remove(ticket_)) return;
    if (!ok) return this->Finish(grpc::Status::OK);
    // A large message is refused before it is parsed, which could take many times its size.
    if (const size_t bytes = question_.Length(); bytes > kQuestionMax)
      return this->Finish(
          {grpc::StatusCode::RESOURCE_EXHAUSTED,
           fmt::format("the message has {} bytes; at most {} are taken", bytes, kQuestionMax)});
    Request request;
    if (!grpc::SerializationTraits<Request>::Deserialize(&question_, &request).ok())
      return this->Finish(grpc::Status::OK);
    response_.Clear();
    answer_(request, response_);
    this->reply(response_);
  }
  void replied(bool ok) override { ok ? read() : this->Finish(grpc::Status::OK); }
  void OnDone() override { self_.reset(); }

  const Answer answer_;
  std::shared_ptr<AnsweringCall> self_;  // until the last reaction
  WaitingCalls::Ticket ticket_;          // of the read
  grpc::ByteBuffer question_;
  Response response_;
};

// A service of one method. It is registered as a stream in both directions, which is the same on
// the wire, so that no message is read before it is asked for.
template <class Request, class Response>
class OneMethod final : public grpc::Service {
 public:
  using Answer = typename AnsweringCall<Request, Response>::Answer;

  OneMethod(GrpcCore& core, const char* name, Answer answer) {
    AddMethod(new grpc::internal::RpcServiceMethod(name, grpc::internal::RpcMethod::BIDI_STREAMING,
                                                   nullptr));
    MarkMethodCallback(
        0, new grpc::internal::CallbackBidiHandler<grpc::ByteBuffer, Response>(
               [&core, answer = std::move(answer)](grpc::CallbackServerContext* context) {
                 return AnsweringCall<Request, Response>::make(core, *context, answer);
               }));
  }
};

// The file and those that it imports, each once.
void add_files(const FileDescriptor& file, std::set<std::string>& seen,
               grpc::reflection::v1::FileDescriptorResponse& out) {
  if (!seen.insert(file.name()).second) return;
  google::protobuf::FileDescriptorProto proto;
  file.CopyTo(&proto);
  out.add_file_descriptor_proto(proto.SerializeAsString());
  for (int i = 0; i < file.dependency_count(); ++i) add_files(*file.dependency(i), seen, out);
}

void set_file(const FileDescriptor* file, const std::string& what,
              ServerReflectionResponse& response) {
  if (file == nullptr) {
    response.mutable_error_response()->set_error_code(int(grpc::StatusCode::NOT_FOUND));
    response.mutable_error_response()->set_error_message("there is no " + what);
    return;
  }
  std::set<std::string> seen;
  add_files(*file, seen, *response.mutable_file_descriptor_response());
}

void reflect(const ServerReflectionRequest& request, ServerReflectionResponse& response) {
  const DescriptorPool& pool = *DescriptorPool::generated_pool();
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  switch (request.message_request_case()) {
    case ServerReflectionRequest::kListServices:
      for (const char* name : kServices)
        response.mutable_list_services_response()->add_service()->set_name(name);
      return;
    case ServerReflectionRequest::kFileByFilename:
      return set_file(pool.FindFileByName(request.file_by_filename()),
                      "file " + request.file_by_filename(), response);
    case ServerReflectionRequest::kFileContainingSymbol:
      return set_file(pool.FindFileContainingSymbol(request.file_containing_symbol()),
                      "symbol " + request.file_containing_symbol(), response);
    case ServerReflectionRequest::kFileContainingExtension: {
      const auto& asked = request.file_containing_extension();
      const Descriptor* type = pool.FindMessageTypeByName(asked.containing_type());
      const auto* extension =
          type == nullptr ? nullptr : pool.FindExtensionByNumber(type, asked.extension_number());
      return set_file(extension == nullptr ? nullptr : extension->file(),
                      "such extension of " + asked.containing_type(), response);
    }
    case ServerReflectionRequest::kAllExtensionNumbersOfType: {
      const std::string& name = request.all_extension_numbers_of_type();
      const Descriptor* type = pool.FindMessageTypeByName(name);
      if (type == nullptr) return set_file(nullptr, "message " + name, response);
      auto& numbers = *response.mutable_all_extension_numbers_response();
      numbers.set_base_type_name(name);
      std::vector<const google::protobuf::FieldDescriptor*> extensions;
      pool.FindAllExtensions(type, &extensions);
      for (const auto* extension : extensions) numbers.add_extension_number(extension->number());
      return;
    }
    case ServerReflectionRequest::MESSAGE_REQUEST_NOT_SET:
      break;
  }
  response.mutable_error_response()->set_error_code(int(grpc::StatusCode::INVALID_ARGUMENT));
  response.mutable_error_response()->set_error_message("the request asks for nothing");
}

}  // namespace

std::unique_ptr<grpc::Service> make_reflection_service(GrpcCore& core) {
  return std::make_unique<OneMethod<ServerReflectionRequest, ServerReflectionResponse>>(
      core, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", reflect);
}

std::unique_ptr<grpc::Service> make_health_list_service(GrpcCore& core) {
  using grpc::health::v1::HealthCheckResponse;
  using grpc::health::v1::HealthListRequest;
  using grpc::health::v1::HealthListResponse;
  return std::make_unique<OneMethod<HealthListRequest, HealthListResponse>>(
      core, "/grpc.health.v1.Health/List",
      [&core](const HealthListRequest&, HealthListResponse& response) {
        const bool serving = core.state.phase() == ServerPhase::ready && core.state.grpc_answers();
        for (const char* name : {"", "kivi.v1.Kivi"})
          (*response.mutable_statuses())[name].set_status(
              serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING);
      });
}

}  // namespace kivi
