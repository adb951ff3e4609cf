// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "kivi/v1/error.pb.h"

namespace kivi {
namespace {

// A status travels twice in the trailing metadata (percent-encoded and in the details), of which
// clients accept 8 KiB. What is longer holds a value of the caller's own.
constexpr size_t kMaxStatusBytes = 512;

std::string shortened(const std::string& message) {
  if (message.size() <= kMaxStatusBytes) return message;
  size_t end = kMaxStatusBytes;
  while (end > 0 && (message[end] & 0xC0) == 0x80) --end;  // not inside a character
  return message.substr(0, end) + " ...";
}

Error invalid(std::string message, const char* field) {
  return Error{ErrorCode::invalid, std::move(message), field};
}

void set_prompt(const v1::GenerateRequest& message, CompletionRequest& request) {
  if (message.prompt_case() == v1::GenerateRequest::kText)
    request.prompts.emplace_back(message.text());
  else
    request.prompts.emplace_back(
        std::vector<int32_t>(message.token_ids().ids().begin(), message.token_ids().ids().end()));
}

SamplingParams to_sampling(const v1::GenerateRequest& message, const ServedModel& model) {
  SamplingParams p;
  p.temperature = message.has_temperature() ? message.temperature()
                                            : model.default_temperature.value_or(p.temperature);
  p.top_p = message.has_top_p() ? message.top_p() : model.default_top_p.value_or(p.top_p);
  p.top_k = message.has_top_k() ? message.top_k() : model.default_top_k.value_or(p.top_k);
  if (message.has_min_p()) p.min_p = message.min_p();
  if (message.has_seed()) p.seed = uint64_t(message.seed());
  p.max_tokens = message.has_max_tokens() ? message.max_tokens() : kDefaultMaxTokens;
  if (message.has_min_tokens()) p.min_tokens = message.min_tokens();
  p.ignore_eos = message.ignore_eos();
  p.stop_token_ids.assign(message.stop_token_ids().begin(), message.stop_token_ids().end());
  if (message.has_presence_penalty()) p.presence_penalty = message.presence_penalty();
  if (message.has_frequency_penalty()) p.frequency_penalty = message.frequency_penalty();
  if (message.has_repetition_penalty()) p.repetition_penalty = message.repetition_penalty();
  for (const auto& [id, bias] : message.logit_bias()) p.logit_bias.push_back({id, bias});
  if (message.has_logprobs()) p.logprobs = message.logprobs();
  if (message.echo()) p.prompt_logprobs = p.logprobs;
  return p;
}

Result<std::optional<OutputFormat>> to_format(const v1::GenerateRequest& message) {
  using Kind = OutputFormat::Kind;
  if (!message.has_structured_output()) return std::optional<OutputFormat>();
  const v1::StructuredOutput& output = message.structured_output();
  const auto of = [](Kind kind, std::string text, const char* name) {
    return std::optional(
        OutputFormat{kind, std::move(text), {}, std::string("structured_output.") + name});
  };
  switch (output.constraint_case()) {
    case v1::StructuredOutput::kJsonObject:
      if (!output.json_object())
        return invalid("structured_output.json_object is false, must be true",
                       "structured_output.json_object");
      return of(Kind::json_object, "", "json_object");
    case v1::StructuredOutput::kJsonSchema:
      return of(Kind::json_schema, output.json_schema(), "json_schema");
    case v1::StructuredOutput::kRegex:
      return of(Kind::regex, output.regex(), "regex");
    case v1::StructuredOutput::kChoice: {
      auto format = of(Kind::choice, "", "choice");
      format->choices.assign(output.choice().texts().begin(), output.choice().texts().end());
      return format;
    }
    case v1::StructuredOutput::kGrammar:
      return of(Kind::grammar, output.grammar(), "grammar");
    case v1::StructuredOutput::CONSTRAINT_NOT_SET:
      break;
  }
  return invalid(
      "structured_output has no constraint, must have json_object, json_schema, regex, choice or "
      "grammar",
      "structured_output");
}

v1::FinishReason to_message(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::length:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::abort:
    case FinishReason::error:  // becomes the call's status
      break;
  }
  return v1::FINISH_REASON_ABORT;
}

// What Generate, Complete and Embed have in common.
template <class Message>
Status set_shared_fields(const Message& message, CompletionRequest& request) {
  if (message.cache_salt().size() > kCacheSaltBytesMax)
    return invalid(fmt::format("cache_salt has {} bytes, must have at most {}",
                               message.cache_salt().size(), kCacheSaltBytesMax),
                   "cache_salt");
  if (message.has_truncate_prompt_tokens() && message.truncate_prompt_tokens() < 1)
    return invalid(fmt::format("truncate_prompt_tokens is {}, must be at least 1",
                               message.truncate_prompt_tokens()),
                   "truncate_prompt_tokens");
  if (message.has_truncate_prompt_tokens())
    request.truncate_prompt_tokens = message.truncate_prompt_tokens();
  if (message.truncate_prompt_end()) request.truncation_side = CompletionRequest::Side::end;
  if (message.has_add_special_tokens()) request.add_special_tokens = message.add_special_tokens();
  request.priority = message.priority();
  request.cache = !message.has_cache() || message.cache();
  request.cache_salt = message.cache_salt();
  return ok_status();
}

void append_token(ChunkToken& token, bool with_logprobs, v1::Choice& part) {
  part.add_token_ids(token.id);
  if (!with_logprobs) return;
  v1::TokenLogprobs& message = *part.add_logprobs();
  message.set_id(token.id);
  message.set_text(std::move(token.text));
  if (token.logprob) message.set_logprob(*token.logprob);
  for (auto& [text, top] : token.top) {
    v1::Candidate& candidate = *message.add_top();
    candidate.set_id(top.id);
    candidate.set_text(std::move(text));
    candidate.set_logprob(top.logprob);
  }
  message.set_text_offset(token.text_offset);
}

}  // namespace

grpc::Status to_grpc_status(const Error& error) { return to_grpc_status(to_api_error(error)); }

grpc::Status to_grpc_status(const ApiError& error) {
  const auto status = static_cast<grpc::StatusCode>(error.kind.rpc);
  const std::string message = shortened(error.message);
  v1::Status details;
  details.set_code(int(status));
  details.set_message(message);
  if (!error.param.empty()) {
    v1::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field(error.param);
    violation->set_description(message);
    auto* any = details.add_details();
    any->set_type_url("type.googleapis.com/google.rpc.BadRequest");
    bad_request.SerializeToString(any->mutable_value());
  }
  v1::ErrorDetail detail;
  detail.set_code(error.kind.code);
  detail.set_field(error.param);
  detail.set_retry_after_seconds(error.retry_after);
  details.add_details()->PackFrom(detail);
  return grpc::Status(status, message, details.SerializeAsString());
}

Status check_model_name(const ServedModel& model, const std::string& name) {
  if (name.empty() || has_name(model, name)) return ok_status();
  return Error{ErrorCode::not_found,
               fmt::format("model \"{}\" is not served here, must be \"{}\"", name, model.name),
               "model"};
}

Status check_token_ids(std::span<const int32_t> ids, int vocab_size, const char* field) {
  for (const int32_t id : ids)
    if (id < 0 || id >= vocab_size)
      return invalid(
          fmt::format("{} holds token id {}, must be from 0 to {}", field, id, vocab_size - 1),
          field);
  return ok_status();
}

Status check_known_fields(const google::protobuf::Message& message) {
  const auto& unknown = message.GetReflection()->GetUnknownFields(message);
  if (unknown.empty()) return ok_status();
  const std::string field = std::to_string(unknown.field(0).number());
  return Error{ErrorCode::invalid,
               fmt::format("field {} of {} is not known to this server", field,
                           message.GetDescriptor()->full_name()),
               field};
}

Result<CompletionRequest> to_completion_request(const v1::GenerateRequest& message,
                                                const ServedModel& model, Delivery delivery) {
  KIVI_RETURN_IF_ERROR(check_model_name(model, message.model()));
  if (message.prompt_case() == v1::GenerateRequest::PROMPT_NOT_SET)
    return invalid("prompt is not set, must be text or token_ids", "prompt");
  if (message.has_token_ids()) {
    const auto& ids = message.token_ids().ids();
    if (ids.empty()) return invalid("token_ids is empty, must hold at least one id", "token_ids");
    KIVI_RETURN_IF_ERROR(check_token_ids({ids.data(), size_t(ids.size())},
                                         model.tokenizer->vocab_size(), "token_ids"));
  }
  if (message.has_best_of() && delivery == Delivery::stream)
    return invalid("best_of is set, must not be set for Generate (Complete has it)", "best_of");
  if (message.has_best_of() && message.best_of() < 1)
    return invalid(
        fmt::format("best_of is {}, must be from n to {}", message.best_of(), kMaxChoices),
        "best_of");

  CompletionRequest request;
  KIVI_RETURN_IF_ERROR(set_shared_fields(message, request));
  set_prompt(message, request);
  request.sampling = to_sampling(message, model);
  request.n = message.has_n() ? message.n() : 1;
  if (message.has_best_of()) request.best_of = message.best_of();
  KIVI_ASSIGN_OR_RETURN(request.format, to_format(message));
  request.allowed_token_ids.assign(message.allowed_token_ids().begin(),
                                   message.allowed_token_ids().end());
  request.bad_words.assign(message.bad_words().begin(), message.bad_words().end());
  request.stop.assign(message.stop().begin(), message.stop().end());
  request.include_stop_str_in_output = message.include_stop_str_in_output();
  request.echo = message.echo();
  if (message.has_skip_special_tokens())
    request.skip_special_tokens = message.skip_special_tokens();
  request.streaming = delivery == Delivery::stream;
  return request;
}

Result<CompletionRequest> to_completion_request(const v1::EmbedRequest& message,
                                                const ServedModel& model) {
  KIVI_RETURN_IF_ERROR(check_model_name(model, message.model()));
  CompletionRequest request;
  if (message.inputs().empty() || message.inputs_size() > kMaxPromptsPerRequest)
    return invalid(fmt::format("inputs has {} entries, must have 1 to {}", message.inputs_size(),
                               kMaxPromptsPerRequest),
                   "inputs");
  for (int i = 0; i < message.inputs_size(); ++i) {
    const v1::EmbedInput& input = message.inputs(i);
    if (input.input_case() == v1::EmbedInput::INPUT_NOT_SET)
      return invalid(fmt::format("inputs[{}] is not set, must be text or token_ids", i), "inputs");
    if (input.has_text()) {
      request.prompts.emplace_back(input.text());
      continue;
    }
    const auto& ids = input.token_ids().ids();
    if (ids.empty())
      return invalid(fmt::format("inputs[{}] is empty, must hold at least one id", i), "inputs");
    KIVI_RETURN_IF_ERROR(
        check_token_ids({ids.data(), size_t(ids.size())}, model.tokenizer->vocab_size(), "inputs"));
    request.prompts.emplace_back(std::vector<int32_t>(ids.begin(), ids.end()));
  }
  if (!v1::Pooling_IsValid(message.pooling()))
    return invalid(
        fmt::format("pooling is {}, must be POOLING_LAST or POOLING_MEAN", int(message.pooling())),
        "pooling");
  request.pooling = message.pooling() == v1::POOLING_MEAN ? Pooling::mean : Pooling::last;
  request.normalize = !message.has_normalize() || message.normalize();
  request.sampling.max_tokens = 0;
  KIVI_RETURN_IF_ERROR(set_shared_fields(message, request));
  return request;
}

void append_chunks(std::span<TextChunk> chunks, bool with_logprobs,
                   google::protobuf::RepeatedPtrField<v1::Choice>& choices) {
  for (TextChunk& chunk : chunks) {
    const auto known = std::ranges::find(choices, chunk.choice, &v1::Choice::index);
    v1::Choice& part = known != choices.end() ? *known : *choices.Add();
    part.set_index(chunk.choice);
    part.mutable_text()->append(chunk.text);
    part.set_prompt_tokens(part.prompt_tokens() + chunk.prompt_tokens);
    for (ChunkToken& token : chunk.tokens) append_token(token, with_logprobs, part);
    if (chunk.finish) part.set_finish_reason(to_message(*chunk.finish));
    if (const auto* id = std::get_if<int32_t>(&chunk.stop_reason)) part.set_stop_token_id(*id);
    if (const auto* stop = std::get_if<std::string>(&chunk.stop_reason))
      part.set_stop_string(*stop);
  }
}

void set_usage(const Usage& usage, v1::Usage& message) {
  message.set_prompt_tokens(usage.prompt_tokens);
  message.set_completion_tokens(usage.completion_tokens);
  message.set_cached_tokens(usage.cached_tokens);
}

}  // namespace kivi
