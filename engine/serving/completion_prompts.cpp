// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/completion_prompts.h"

#include <fmt/format.h>

#include <algorithm>

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

Status validate_words(const CompletionRequest& request, int vocab_size) {
  if (request.allowed_token_ids.size() > size_t(vocab_size))
    return invalid("allowed_token_ids",
                   fmt::format("allowed_token_ids has {} ids, must have at most {}",
                               request.allowed_token_ids.size(), vocab_size));
  for (const int32_t id : request.allowed_token_ids)
    if (id < 0 || id >= vocab_size)
      return invalid(
          "allowed_token_ids",
          fmt::format("allowed_token_ids has the id {}, must be in 0..{}", id, vocab_size - 1));
  if (!request.allowed_token_ids.empty() && request.format)
    return invalid("allowed_token_ids",
                   fmt::format("allowed_token_ids and {} are both given, must be one of them",
                               request.format->field));
  if (request.bad_words.size() > size_t(kMaxBadWords))
    return invalid("bad_words", fmt::format("bad_words has {} words, must be at most {}",
                                            request.bad_words.size(), kMaxBadWords));
  for (const std::string& word : request.bad_words)
    if (word.empty() || word.size() > size_t(kMaxStopStringBytes) || !is_valid_utf8(word))
      return invalid("bad_words",
                     fmt::format("bad_words has a word of {} bytes, must be UTF-8 of 1 to {} bytes",
                                 word.size(), kMaxStopStringBytes));
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
                 fmt::format("This model's maximum context length is {} tokens. The prompt has {} "
                             "bytes, which are at least {} tokens.",
                             model.max_model_len, text.size(), int64_t(text.size()) / longest),
                 "prompt"};
  }
  KIVI_RETURN_IF_ERROR(check_text_bytes(text.size(), model, "prompt"));
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
  if (request.pooling != Pooling::none && model.hidden == 0)
    return Error{ErrorCode::unsupported, "embeddings are not supported by this model's server",
                 "model"};
  KIVI_RETURN_IF_ERROR(validate_choices(request));
  KIVI_RETURN_IF_ERROR(validate_stop(request.stop));
  KIVI_RETURN_IF_ERROR(validate_words(request, model.engine->model().vocab_size));
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
    if (request.stop_token.stop_requested())
      return Error{ErrorCode::cancelled, "the request was abandoned"};
    std::vector<int32_t> ids;
    if (const auto* text = std::get_if<std::string>(&prompt)) {
      KIVI_ASSIGN_OR_RETURN(ids, encode_text(*text, request, model));
    } else {
      ids = std::get<std::vector<int32_t>>(prompt);
    }
    KIVI_RETURN_IF_ERROR(check_ids(ids, prompts.size(), model.engine->model().vocab_size));
    const size_t keep = size_t(request.truncate_prompt_tokens);
    if (request.truncate_prompt_tokens > 0 && ids.size() > keep) {
      if (request.truncation_side == CompletionRequest::Side::begin)
        ids.erase(ids.begin(), ids.end() - int64_t(keep));
      else
        ids.resize(keep);
    }
    prompts.push_back(std::make_shared<const std::vector<int32_t>>(std::move(ids)));
  }
  return prompts;
}

Result<std::shared_ptr<const TokenRules>> rules_of(const CompletionRequest& request,
                                                   const ServedModel& model) {
  const SamplingParams& sampling = request.sampling;
  const bool delays_end = request.format && sampling.min_tokens > 0;
  if (request.allowed_token_ids.empty() && request.bad_words.empty() && !delays_end)
    return std::shared_ptr<const TokenRules>();
  auto rules = std::make_shared<TokenRules>();
  const EngineLimits& limits = model.engine->model();
  rules->vocab_size = limits.vocab_size;
  rules->allowed = mask_of_tokens(request.allowed_token_ids, limits.vocab_size);
  KIVI_ASSIGN_OR_RETURN(rules->banned, tokens_of_words(request.bad_words, *model.tokenizer));
  rules->min_tokens = sampling.min_tokens;
  rules->ends = sampling.stop_token_ids;
  // A whole format ends with EOS even if ignore_eos is set.
  if (!sampling.ignore_eos || request.format)
    rules->ends.insert(rules->ends.end(), limits.eos_token_ids.begin(), limits.eos_token_ids.end());
  const auto outside = [&](int32_t id) { return id < 0 || id >= limits.vocab_size; };
  std::erase_if(rules->ends, outside);
  std::erase_if(rules->banned,
                [&](const auto& sequence) { return std::ranges::any_of(sequence, outside); });
  return std::shared_ptr<const TokenRules>(std::move(rules));
}

std::string kv_format_name(const ServedModel& model) {
  return name_of(KvLayout{model.kv_format, {}, model.kv_layer_bits});
}

bool has_name(const ServedModel& model, std::string_view name) {
  return name == model.name || std::ranges::find(model.aliases, name) != model.aliases.end();
}

Status check_text_bytes(size_t bytes, const ServedModel& model, const char* field) {
  const int64_t limit = model.engine->config().max_tokenize_bytes;
  if (int64_t(bytes) <= limit) return ok_status();
  return invalid(field, fmt::format("{} is a text of {} bytes, must be at most {} "
                                    "(--max-tokenize-bytes)",
                                    field, bytes, limit));
}

Result<int> count_choices(const CompletionRequest& request, const ServedModel& model) {
  const EngineConfig& config = model.engine->config();
  const int64_t prompts = int64_t(request.prompts.size());
  const int64_t each = std::max(request.n, request.best_of);
  const int64_t limit = int64_t(config.max_num_queued_reqs) + config.max_num_seqs;
  if (prompts * each <= limit) return int(prompts * each);
  const char* field = each == 1 ? "prompt" : request.best_of > request.n ? "best_of" : "n";
  return invalid(field, fmt::format("{} prompts with {} choices each ({}) are {} sequences, the "
                                    "server holds at most {} (max_num_queued_reqs {} + "
                                    "max_num_seqs {})",
                                    prompts, each, each == 1 ? "n" : field, prompts * each, limit,
                                    config.max_num_queued_reqs, config.max_num_seqs));
}

Status check_reply_bytes(const CompletionRequest& request, const std::vector<PromptIds>& prompts,
                         const ServedModel& model) {
  // JSON bytes of a token's text; with logprobs its text, logprob and offset; and of one
  // alternative. Measured: 18 bytes for an alternative, 390 for a token with 20 of them.
  constexpr double kTextBytes = 16, kTokenBytes = 64, kAlternativeBytes = 32;
  const auto token_bytes = [&](int logprobs) {
    return logprobs < 0 ? kTextBytes : kTokenBytes + (logprobs + 1) * kAlternativeBytes;
  };
  const SamplingParams& sampling = request.sampling;
  const int prompt_logprobs = std::max(sampling.logprobs, sampling.prompt_logprobs);
  double prompt_bytes = 0, output_bytes = 0;  // of one choice of each prompt
  for (const PromptIds& ids : prompts) {
    const int64_t left = std::max<int64_t>(0, model.max_model_len - int64_t(ids->size()));
    // The shortest decimal of a float, with a comma.
    if (request.pooling != Pooling::none) output_bytes += 14 * double(model.hidden);
    if (request.echo) prompt_bytes += double(ids->size()) * token_bytes(prompt_logprobs);
    // A stream's chunks are gone once they are written.
    if (!request.streaming)
      output_bytes +=
          double(std::min<int64_t>(sampling.max_tokens, left)) * token_bytes(sampling.logprobs);
  }
  const double bytes = (prompt_bytes + output_bytes) * std::max(request.n, request.best_of);
  const int64_t limit = model.engine->config().max_reply_bytes;
  if (bytes <= double(limit)) return ok_status();
  const char* field = request.pooling != Pooling::none           ? "prompt"
                      : prompt_logprobs >= 0                     ? "logprobs"
                      : std::max(request.n, request.best_of) > 1 ? "n"
                      : prompt_bytes > output_bytes              ? "echo"
                                                                 : "max_tokens";
  return invalid(field, fmt::format("{} makes a reply of up to {:.0f} bytes ({} prompts, n {}, "
                                    "max_tokens {}, logprobs {}, echo {}), must be at most {} "
                                    "(--max-reply-bytes)",
                                    field, bytes, prompts.size(), request.n, sampling.max_tokens,
                                    prompt_logprobs, request.echo, limit));
}

uint64_t seed_of_choice(uint64_t seed, int k) {
  if (k == 0) return seed;
  uint64_t x = seed + 0x9E3779B97F4A7C15u * uint64_t(k);  // splitmix64's stream and mix
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace kivi
