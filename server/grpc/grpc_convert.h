// SPDX-License-Identifier: Apache-2.0
// The messages of kivi.v1 <-> the engine's types. Pure functions: no calls, no clocks.
#pragma once

#include <grpcpp/support/status.h>

#include <span>
#include <string>

#include "engine/serving/completion.h"
#include "kivi/v1/kivi.pb.h"
#include "server/api_error.h"

namespace kivi {

enum class Delivery { stream, whole };

// The status of `error`, with the details that error.proto describes.
grpc::Status to_grpc_status(const ApiError& error);
grpc::Status to_grpc_status(const Error& error);

// Error not_found where `name` is not empty and not the served model's.
Status check_model_name(const ServedModel& model, const std::string& name);
// Errors name `field`.
Status check_token_ids(std::span<const int32_t> ids, int vocab_size, const char* field);

// Error invalid where `message` has fields that this contract does not know.
Status check_known_fields(const google::protobuf::Message& message);

// What Completion::start does not judge is judged here: presence, fields of the other delivery.
// `id`, `deadline` and `arrival` are the caller's to set.
Result<CompletionRequest> to_completion_request(const v1::GenerateRequest& message,
                                                const ServedModel& model, Delivery delivery);

Result<CompletionRequest> to_completion_request(const v1::EmbedRequest& message,
                                                const ServedModel& model);

// Adds `chunks` to `choices`, chunks of a choice joined to one part in their order.
void append_chunks(std::span<TextChunk> chunks, bool with_logprobs,
                   google::protobuf::RepeatedPtrField<v1::Choice>& choices);
void set_usage(const Usage& usage, v1::Usage& message);

}  // namespace kivi
