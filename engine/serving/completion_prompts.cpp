#include "engine/serving/completion_prompts.h"

#include <fmt/format.h>

#include "base/utf8.h"
#include "engine/limits.h"

namespace kivi {
namespace {

Error invalid(const char* field, std::string message) {
  return Error{ErrorCode::invalid, std::move(message), field};
}

Status validate_stop(const std::vector<std::string>& stop) {
  if (stop.size() > size_t(kMaxStopStrings)) {
    return invalid("stop", fmt::format("stop has {} strings, must be at most {}", stop.size(),
                                       kMaxStopStrings));
  }
  for (const std::string& string : stop) {
    if (string.empty()) return invalid("stop", "stop has an empty string");
    if (string.size() > size_t(kMaxStopStringBytes)) {
      return invalid("stop", fmt::format("stop has a string of {} bytes, must be at most {}",
                                         string.size(), kMaxStopStringBytes));
    }
    if (!is_valid_utf8(string)) return invalid("stop", "stop has a string that is not UTF-8");
  }
  return ok_status();
}

Status validate_choices(const CompletionRequest& request) {
  if (request.n < 1 || request.n > kMaxChoices) {
    return invalid("n", fmt::format("n is {}, must be in 1..{}", request.n, kMaxChoices));
  }
  if (request.best_of == 0) return ok_status();
  if (request.best_of < request.n || request.best_of > kMaxChoices) {
    return invalid("best_of", fmt::format("best_of is {}, must be in n..{}, n is {}",
                                          request.best_of, kMaxChoices, request.n));
  }
  if (request.streaming && request.best_of > request.n) {
    return invalid("best_of", fmt::format("best_of is {} and n is {}; they must be equal when "
                                          "streaming",
                                          request.best_of, request.n));
  }
  return ok_status();
}

Result<std::vector<int32_t>> encode_text(const std::string& text, const CompletionRequest& request,
                                         const ServedModel& model) {
  // A text that cannot fit is refused before the work of encoding it.
  const int64_t longest = model.tokenizer->longest_token_bytes();
  if (longest > 0 && request.truncate_prompt_tokens < 0 && model.max_model_len > 0 &&
      int64_t(text.size()) / longest > model.max_model_len) {
    return Error{ErrorCode::context_length,
                 fmt::format("prompt of {} bytes is at least {} tokens, the model's context is {}",
                             text.size(), int64_t(text.size()) / longest, model.max_model_len),
                 "prompt"};
  }
  return model.tokenizer->encode(text, request.add_special_tokens);
}

Status check_ids(const std::vector<int32_t>& ids, size_t prompt, int vocab_size) {
  if (ids.empty()) {
    return invalid("prompt",
                   fmt::format("prompt {} has no tokens, must have at least one", prompt));
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      return invalid("prompt", fmt::format("prompt {} has id {} at {}, must be in 0..{}", prompt,
                                           ids[i], i, vocab_size - 1));
    }
  }
  return ok_status();
}

}  // namespace

Status validate(const CompletionRequest& request, const ServedModel& model) {
  if (request.prompts.empty() || request.prompts.size() > size_t(kMaxPromptsPerRequest)) {
    return invalid("prompt", fmt::format("prompt is a list of {} prompts, must be 1..{}",
                                         request.prompts.size(), kMaxPromptsPerRequest));
  }
  KIVI_RETURN_IF_ERROR(validate_choices(request));
  KIVI_RETURN_IF_ERROR(validate_stop(request.stop));
  if (request.truncate_prompt_tokens != -1 && request.truncate_prompt_tokens < 1) {
    return invalid("truncate_prompt_tokens",
                   fmt::format("truncate_prompt_tokens is {}, must be at least 1, or -1 for none",
                               request.truncate_prompt_tokens));
  }
  if (request.sampling.prompt_logprobs >= 0 && !request.echo) {
    return invalid("prompt_logprobs",
                   fmt::format("prompt_logprobs is {}, but echo is false: they come with the "
                               "echoed prompt",
                               request.sampling.prompt_logprobs));
  }
  return validate(request.sampling, model.engine->model().vocab_size,
                  model.engine->config().max_logprobs);
}

Result<std::vector<PromptIds>> encode_prompts(const CompletionRequest& request,
                                              const ServedModel& model) {
  std::vector<PromptIds> prompts;
  prompts.reserve(request.prompts.size());
  for (const auto& prompt : request.prompts) {
    std::vector<int32_t> ids;
    if (const auto* text = std::get_if<std::string>(&prompt)) {
      KIVI_ASSIGN_OR_RETURN(ids, encode_text(*text, request, model));
    } else {
      ids = std::get<std::vector<int32_t>>(prompt);
    }
    KIVI_RETURN_IF_ERROR(check_ids(ids, prompts.size(), model.engine->model().vocab_size));
    const size_t keep = size_t(request.truncate_prompt_tokens);
    if (request.truncate_prompt_tokens > 0 && ids.size() > keep) {
      ids.erase(ids.begin(), ids.end() - int64_t(keep));
    }
    prompts.push_back(std::make_shared<const std::vector<int32_t>>(std::move(ids)));
  }
  return prompts;
}

uint64_t seed_of_choice(uint64_t seed, int k) {
  if (k == 0) return seed;
  uint64_t x = seed + 0x9E3779B97F4A7C15u * uint64_t(k);  // splitmix64's stream and mix
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace kivi
