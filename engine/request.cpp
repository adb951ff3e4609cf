// SPDX-License-Identifier: Apache-2.0
#include "engine/request.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/limits.h"

namespace kivi {
namespace {

Error wrong_parameter(const std::string& field, const std::string& value,
                      const std::string& expected) {
  return Error{ErrorCode::invalid, fmt::format("{} is {}, must be {}", field, value, expected),
               field};
}

// NaN fails: every comparison with it is false.
Status number_in_range(const char* field, float value, float low, float high) {
  if (value >= low && value <= high) return ok_status();
  return wrong_parameter(field, fmt::format("{}", value), fmt::format("from {} to {}", low, high));
}

Status check_count(const char* field, size_t count, int max) {
  if (count <= size_t(max)) return ok_status();
  return Error{ErrorCode::invalid,
               fmt::format("{} has {} entries, must have at most {}", field, count, max), field};
}

Status check_id(const char* field, int32_t id, int vocab_size) {
  if (id >= 0 && id < vocab_size) return ok_status();
  return Error{ErrorCode::invalid,
               fmt::format("{} holds token id {}, must be from 0 to {}", field, id, vocab_size - 1),
               field};
}

Status check_logprobs(const char* field, int value, int max) {
  if (value >= -1 && value <= max) return ok_status();
  return wrong_parameter(field, std::to_string(value),
                         fmt::format("from 0 to {} (or -1: none)", max));
}

Status check_logit_bias(const std::vector<LogitBias>& entries, int vocab_size) {
  KIVI_RETURN_IF_ERROR(check_count("logit_bias", entries.size(), kMaxLogitBias));
  std::vector<int32_t> ids;
  for (const LogitBias& entry : entries) {
    KIVI_RETURN_IF_ERROR(check_id("logit_bias", entry.id, vocab_size));
    if (!(entry.bias >= -100 && entry.bias <= 100))
      return Error{ErrorCode::invalid,
                   fmt::format("logit_bias of token {} is {}, must be from -100 to 100", entry.id,
                               entry.bias),
                   "logit_bias"};
    ids.push_back(entry.id);
  }
  std::ranges::sort(ids);
  if (const auto twice = std::ranges::adjacent_find(ids); twice != ids.end())
    return Error{ErrorCode::invalid,
                 fmt::format("logit_bias names token {} twice, must name a token once", *twice),
                 "logit_bias"};
  return ok_status();
}

}  // namespace

Status validate(const SamplingParams& p, int vocab_size, int max_logprobs) {
  // Beyond 100 the distribution is uniform in all but name.
  KIVI_RETURN_IF_ERROR(number_in_range("temperature", p.temperature, 0, 100));
  if (!(p.top_p > 0 && p.top_p <= 1))
    return wrong_parameter("top_p", fmt::format("{}", p.top_p), "in (0, 1]");
  if (p.top_k < -1)
    return wrong_parameter("top_k", std::to_string(p.top_k), "at least 1 (or 0 or -1: off)");
  if (!(p.min_p >= 0 && p.min_p < 1))
    return wrong_parameter("min_p", fmt::format("{}", p.min_p), "in [0, 1)");
  if (p.max_tokens < 0)
    return wrong_parameter("max_tokens", std::to_string(p.max_tokens), "at least 0");
  if (p.min_tokens < 0 || p.min_tokens > p.max_tokens)
    return wrong_parameter("min_tokens", std::to_string(p.min_tokens),
                           fmt::format("from 0 to max_tokens {}", p.max_tokens));
  KIVI_RETURN_IF_ERROR(check_count("stop_token_ids", p.stop_token_ids.size(), kMaxStopTokenIds));
  for (const int32_t id : p.stop_token_ids)
    KIVI_RETURN_IF_ERROR(check_id("stop_token_ids", id, vocab_size));
  KIVI_RETURN_IF_ERROR(number_in_range("presence_penalty", p.presence_penalty, -2, 2));
  KIVI_RETURN_IF_ERROR(number_in_range("frequency_penalty", p.frequency_penalty, -2, 2));
  if (!(p.repetition_penalty > 0 && p.repetition_penalty <= 100))
    return wrong_parameter("repetition_penalty", fmt::format("{}", p.repetition_penalty),
                           "in (0, 100]");
  KIVI_RETURN_IF_ERROR(check_logit_bias(p.logit_bias, vocab_size));
  KIVI_RETURN_IF_ERROR(check_logprobs("logprobs", p.logprobs, max_logprobs));
  return check_logprobs("prompt_logprobs", p.prompt_logprobs, max_logprobs);
}

const char* name_of(FinishReason r) {
  switch (r) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::abort:
      return "abort";
    case FinishReason::error:
      break;
  }
  return "error";
}

}  // namespace kivi
