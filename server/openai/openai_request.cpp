// SPDX-License-Identifier: Apache-2.0
// Request JSON -> the engine's types (openai_api.h).
#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "server/openai/openai_fields.h"
#include "server/request_id.h"

namespace kivi {
namespace {

using nlohmann::json;
using Prompt = std::variant<std::string, std::vector<int32_t>>;

// `name`: the list's place in `field`.
Result<std::vector<int32_t>> ids_of(const json& list, const std::string& name, const char* field,
                                    int vocab_size) {
  if (list.empty())
    return Error{ErrorCode::invalid, name + " is an empty list of ids, must have at least one",
                 field};
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const json& entry : list) {
    const auto id = as_integer(entry, 0, vocab_size - 1);
    if (!id)
      return Error{ErrorCode::invalid,
                   fmt::format("{}[{}] is {}, must be a token id in [0, {}]", name, ids.size(),
                               describe(entry), vocab_size - 1),
                   field};
    ids.push_back(int32_t(*id));
  }
  return ids;
}

std::vector<LogitBias> parse_logit_bias(JsonFields& fields, int vocab_size) {
  const json* value = fields.raw("logit_bias");
  if (value == nullptr) return {};
  if (!value->is_object()) {
    fields.fail("logit_bias",
                fmt::format("is {}, must map token ids to numbers", describe(*value)));
    return {};
  }
  if (value->size() > size_t(kMaxLogitBias)) {
    fields.fail("logit_bias",
                fmt::format("has {} entries, at most {} are taken", value->size(), kMaxLogitBias));
    return {};
  }
  std::vector<LogitBias> out;
  for (const auto& item : value->items()) {
    const std::string& key = item.key();
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    // Written back it must be the same: "7" and "07" would be one token twice.
    if (error != std::errc() || end != key.data() + key.size() || std::to_string(id) != key ||
        id < 0 || id >= vocab_size) {
      fields.fail("logit_bias", fmt::format("has the key {}, must be a token id in [0, {}]",
                                            describe(json(key)), vocab_size - 1));
      return {};
    }
    const json& bias = item.value();
    if (!bias.is_number() || !(bias.get<float>() >= -100 && bias.get<float>() <= 100)) {
      fields.fail("logit_bias", fmt::format("of token {} is {}, must be a number in [-100, 100]",
                                            key, describe(bias)));
      return {};
    }
    out.push_back({id, bias.get<float>()});
  }
  return out;
}

// But for max_tokens and logprobs.
SamplingParams parse_sampling(JsonFields& fields, const ApiRules& rules) {
  SamplingParams p;
  p.temperature = fields.number("temperature", rules.default_temperature.value_or(p.temperature));
  p.top_p = fields.number("top_p", rules.default_top_p.value_or(p.top_p));
  p.top_k = fields.integer("top_k", rules.default_top_k.value_or(p.top_k), -1);
  if (p.top_k == -1) p.top_k = 0;
  p.min_p = fields.number("min_p", p.min_p);
  if (const auto seed = fields.int64("seed")) p.seed = uint64_t(*seed);
  p.min_tokens = fields.integer("min_tokens", 0, 0);
  p.ignore_eos = fields.boolean("ignore_eos", false);
  p.stop_token_ids = fields.integers("stop_token_ids", size_t(kMaxStopTokenIds));
  p.presence_penalty = fields.number("presence_penalty", 0);
  p.frequency_penalty = fields.number("frequency_penalty", 0);
  p.repetition_penalty = fields.number("repetition_penalty", 1);
  p.logit_bias = parse_logit_bias(fields, rules.vocab_size);
  return p;
}

std::vector<std::string> parse_stop(JsonFields& fields) {
  std::vector<std::string> stop = fields.texts("stop", size_t(kMaxStopStrings));
  for (const std::string& text : stop)
    if (text.empty() || text.size() > size_t(kMaxStopStringBytes)) {
      fields.fail("stop", fmt::format("has a string of {} bytes, must be 1 to {}", text.size(),
                                      kMaxStopStringBytes));
      return {};
    }
  return stop;
}

// Sets the three usage flags; `streaming` decides whether the field may stand at all.
Status parse_stream_options(JsonFields& fields, bool streaming, CompletionCall& call) {
  const json* value = fields.raw("stream_options");
  if (value == nullptr) return ok_status();
  const auto wrong = [](const std::string& message, const char* field) {
    return Error{ErrorCode::invalid, field + (" " + message), field};
  };
  if (!streaming) return wrong("is only allowed with stream: true", "stream_options");
  if (!value->is_object())
    return wrong(fmt::format("is {}, must be an object", describe(*value)), "stream_options");
  JsonFields options(*value, "stream_options.");
  call.include_usage = options.boolean("include_usage", false);
  call.continuous_usage = options.boolean("continuous_usage_stats", false);
  KIVI_RETURN_IF_ERROR(options.status());
  for (std::string& name : options.unknown()) call.unknown_fields.push_back(std::move(name));
  return ok_status();
}

// allowed_token_ids and bad_words.
void parse_token_rules(JsonFields& fields, const ApiRules& rules, CompletionRequest& r) {
  r.allowed_token_ids = fields.integers("allowed_token_ids", size_t(rules.vocab_size));
  if (fields.raw("allowed_token_ids") != nullptr && r.allowed_token_ids.empty())
    fields.fail("allowed_token_ids", "is empty, must have at least one token id");
  r.bad_words = fields.texts("bad_words", size_t(kMaxBadWords));
}

Status check_combinations(const CompletionCall& call) {
  const CompletionRequest& r = call.request;
  if (r.best_of < r.n)
    return Error{ErrorCode::invalid,
                 fmt::format("best_of is {}, must be at least n ({})", r.best_of, r.n), "best_of"};
  if (r.streaming && r.best_of > r.n)
    return Error{ErrorCode::invalid,
                 fmt::format("best_of is {}, must equal n ({}) with stream: true", r.best_of, r.n),
                 "best_of"};
  return ok_status();
}

}  // namespace

// Strings and lists of ids may stand side by side.
Result<std::vector<Prompt>> parse_prompts(const json* value, const char* name, int vocab_size) {
  const auto wrong = [&](std::string message) {
    return Error{ErrorCode::invalid, std::move(message), name};
  };
  if (value == nullptr) return wrong(fmt::format("{} is missing, must be text or token ids", name));
  if (value->is_string()) return std::vector<Prompt>{value->get<std::string>()};
  if (!value->is_array() || value->empty())
    return wrong(
        fmt::format("{} is {}, must be a string, a list of strings, a list of token ids "
                    "or a list of those, of at least one entry",
                    name, describe(*value)));
  std::vector<Prompt> prompts;
  if (value->front().is_number()) {
    KIVI_ASSIGN_OR_RETURN(std::vector<int32_t> ids, ids_of(*value, name, name, vocab_size));
    prompts.emplace_back(std::move(ids));
    return prompts;
  }
  if (value->size() > size_t(kMaxPromptsPerRequest))
    return wrong(fmt::format("{} has {} entries, at most {} are taken", name, value->size(),
                             kMaxPromptsPerRequest));
  for (const json& entry : *value) {
    const std::string place = fmt::format("{}[{}]", name, prompts.size());
    if (entry.is_string()) {
      prompts.emplace_back(entry.get<std::string>());
    } else if (entry.is_array()) {
      KIVI_ASSIGN_OR_RETURN(std::vector<int32_t> ids, ids_of(entry, place, name, vocab_size));
      prompts.emplace_back(std::move(ids));
    } else {
      return wrong(
          fmt::format("{} is {}, must be a string or a list of token ids", place, describe(entry)));
    }
  }
  return prompts;
}

void refuse_fields(JsonFields& fields, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (fields.raw(name) != nullptr)
      fields.fail(
          {ErrorCode::unsupported, fmt::format("{} is not supported by this build", name), name});
    fields.note_refused(name);
  }
}

void refuse_unless(JsonFields& fields, const char* name, std::initializer_list<json> neutral) {
  const json* value = fields.raw(name);
  fields.note_refused(name);
  if (value == nullptr || std::ranges::find(neutral, *value) != neutral.end()) return;
  fields.fail({ErrorCode::unsupported,
               fmt::format("{} is {}, which this build does not support: leave it out or give {}",
                           name, describe(*value), neutral.begin()->dump()),
               name});
}

void refuse_unbuilt(JsonFields& fields) {
  if (fields.raw("prompt_logprobs") != nullptr)
    fields.fail({ErrorCode::unsupported,
                 "prompt_logprobs is not supported by this build: echo with logprobs gives the log "
                 "probabilities of a prompt (/v1/completions)",
                 "prompt_logprobs"});
  fields.note_refused("prompt_logprobs");
  refuse_fields(fields, {"logprob_token_ids", "prompt_embeds", "lora_request", "kv_transfer_params",
                         "vllm_xargs", "logits_processors"});
  refuse_unless(fields, "use_beam_search", {false});
  refuse_unless(fields, "length_penalty", {1, 0});
  refuse_unless(fields, "early_stopping", {false});
  refuse_unless(fields, "typical_p", {1});
  // llama.cpp's clients send all settings of a sampler, also where its switch is off.
  const auto refuse_sampler = [&](const char* master, std::initializer_list<const char*> settings) {
    refuse_unless(fields, master, {0});
    const bool off = fields.raw(master) != nullptr;
    for (const char* name : settings)
      if (fields.raw(name) == nullptr || off)
        fields.note_refused(name);
      else
        refuse_fields(fields, {name});
  };
  refuse_sampler("mirostat", {"mirostat_tau", "mirostat_eta"});
  refuse_sampler("mirostat_mode", {});
  refuse_sampler("dry_multiplier",
                 {"dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"});
  refuse_sampler("xtc_probability", {"xtc_threshold"});
}

Status check_model(JsonFields& fields, const ApiRules& rules) {
  const auto model = fields.text("model");
  if (fields.ok() && model && *model != rules.model_name &&
      std::ranges::find(rules.model_aliases, *model) == rules.model_aliases.end())
    return Error{ErrorCode::not_found,
                 fmt::format("model is {}, which does not exist: this server has \"{}\"",
                             describe(json(*model)), rules.model_name),
                 "model"};
  return ok_status();
}

void parse_prompt_limits(JsonFields& fields, CompletionRequest& r) {
  r.truncate_prompt_tokens = fields.integer("truncate_prompt_tokens", -1, -1);
  if (r.truncate_prompt_tokens == 0)
    fields.fail("truncate_prompt_tokens", "is 0, must be at least 1 (or -1: off)");
  const std::string side = fields.text("truncation_side").value_or("left");
  if (side != "left" && side != "right")
    fields.fail("truncation_side",
                fmt::format("is {}, must be left or right", describe(json(side))));
  if (side == "right") r.truncation_side = CompletionRequest::Side::end;
}

void parse_request_fields(JsonFields& fields, CompletionCall& call) {
  CompletionRequest& r = call.request;
  r.priority = fields.integer("priority", 0);
  r.cache = fields.boolean("cache", true);
  r.cache_salt = fields.text("cache_salt").value_or("");
  if (r.cache_salt.size() > kCacheSaltBytesMax)
    fields.fail("cache_salt", fmt::format("has {} bytes, must have at most {}", r.cache_salt.size(),
                                          kCacheSaltBytesMax));
  call.user = fields.text("user").value_or("");
  call.request_id = fields.text("request_id").value_or("");
  if (!call.request_id.empty() && !usable_request_id(call.request_id))
    fields.fail("request_id",
                fmt::format("is {}, must be 1 to 128 printable ASCII characters without blanks",
                            describe(json(call.request_id))));
}

Status parse_shared_fields(std::string_view body, JsonFields& fields, const ApiRules& rules,
                           CompletionCall& call) {
  CompletionRequest& r = call.request;
  const int max_tokens = r.sampling.max_tokens, logprobs = r.sampling.logprobs;
  r.sampling = parse_sampling(fields, rules);
  r.sampling.max_tokens = max_tokens;
  r.sampling.logprobs = logprobs;
  r.n = fields.integer("n", 1, 1, kMaxChoices);
  r.stop = parse_stop(fields);
  r.include_stop_str_in_output = fields.boolean("include_stop_str_in_output", false);
  r.skip_special_tokens = fields.boolean("skip_special_tokens", true);
  parse_token_rules(fields, rules, r);
  parse_prompt_limits(fields, r);
  r.streaming = fields.boolean("stream", false);
  call.return_token_ids = fields.boolean("return_token_ids", false);
  call.ids_as_tokens = fields.boolean("return_tokens_as_token_ids", false);
  parse_request_fields(fields, call);
  KIVI_RETURN_IF_ERROR(fields.status());
  KIVI_ASSIGN_OR_RETURN(r.format, parse_format(body, fields));
  return parse_stream_options(fields, r.streaming, call);
}

Status take_unknown(const JsonFields& fields, const ApiRules& rules,
                    std::vector<std::string>& unknown) {
  for (std::string& name : fields.unknown()) unknown.push_back(std::move(name));
  if (rules.strict_params && !unknown.empty())
    return Error{ErrorCode::invalid,
                 fmt::format("{} is not a known parameter", describe(json(unknown[0]))),
                 unknown[0].substr(0, 100)};
  return ok_status();
}

ApiRules api_rules(const ServedModel& model, bool strict_params, std::stop_token stop) {
  ApiRules rules;
  rules.model_name = model.name;
  rules.model_aliases = model.aliases;
  rules.vocab_size = model.engine->model().vocab_size;
  rules.max_logprobs = model.engine->config().max_logprobs;
  rules.strict_params = strict_params;
  rules.default_temperature = model.default_temperature;
  rules.default_top_p = model.default_top_p;
  rules.default_top_k = model.default_top_k;
  if (model.chat != nullptr) rules.chat_template = model.chat->template_text();
  rules.stop = std::move(stop);
  return rules;
}

Result<CompletionCall> parse_completion(std::string_view body, const ApiRules& rules) {
  KIVI_ASSIGN_OR_RETURN(const ParsedJson parsed, parse_request_json(body, rules.stop));
  JsonFields fields(*parsed, "", rules.recorder);
  CompletionCall call;
  CompletionRequest& r = call.request;
  KIVI_RETURN_IF_ERROR(check_model(fields, rules));
  refuse_unbuilt(fields);
  refuse_fields(fields,
                {"tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "suffix"});
  KIVI_RETURN_IF_ERROR(fields.status());
  KIVI_ASSIGN_OR_RETURN(r.prompts, parse_prompts(fields.raw("prompt"), "prompt", rules.vocab_size));
  r.sampling.max_tokens = fields.integer("max_tokens", kDefaultMaxTokens, 0);
  r.sampling.logprobs = fields.integer("logprobs", -1, 0, rules.max_logprobs);
  r.echo = fields.boolean("echo", false);
  r.add_special_tokens = fields.boolean("add_special_tokens", true);
  KIVI_RETURN_IF_ERROR(parse_shared_fields(body, fields, rules, call));
  r.best_of = fields.integer("best_of", r.n, 1, kMaxChoices);
  KIVI_RETURN_IF_ERROR(fields.status());
  if (r.echo) r.sampling.prompt_logprobs = r.sampling.logprobs;
  KIVI_RETURN_IF_ERROR(validate(r.sampling, rules.vocab_size, rules.max_logprobs));
  KIVI_RETURN_IF_ERROR(check_combinations(call));
  KIVI_RETURN_IF_ERROR(take_unknown(fields, rules, call.unknown_fields));
  r.stop_token = rules.stop;
  return call;
}

Result<TokenizeCall> parse_tokenize(std::string_view body, const ApiRules& rules) {
  KIVI_ASSIGN_OR_RETURN(const ParsedJson parsed, parse_request_json(body, rules.stop));
  JsonFields fields(*parsed, "", rules.recorder);
  TokenizeCall call;
  KIVI_RETURN_IF_ERROR(check_model(fields, rules));
  if (fields.raw("messages") != nullptr) {
    if (fields.raw("prompt") != nullptr)
      return Error{ErrorCode::invalid, "prompt and messages are both given, must be one of them",
                   "prompt"};
    KIVI_ASSIGN_OR_RETURN(call.chat, parse_chat_input(body, *parsed, fields, rules));
    call.return_token_strs = fields.boolean("return_token_strs", false);
    KIVI_RETURN_IF_ERROR(fields.status());
    KIVI_RETURN_IF_ERROR(take_unknown(fields, rules, call.unknown_fields));
    return call;
  }
  const auto prompt = fields.text("prompt");
  call.add_special_tokens = fields.boolean("add_special_tokens", true);
  call.return_token_strs = fields.boolean("return_token_strs", false);
  KIVI_RETURN_IF_ERROR(fields.status());
  if (!prompt) return Error{ErrorCode::invalid, "prompt is missing, must be a string", "prompt"};
  call.prompt = *prompt;
  KIVI_RETURN_IF_ERROR(take_unknown(fields, rules, call.unknown_fields));
  return call;
}

Result<DetokenizeCall> parse_detokenize(std::string_view body, const ApiRules& rules) {
  KIVI_ASSIGN_OR_RETURN(const ParsedJson parsed, parse_request_json(body, rules.stop));
  JsonFields fields(*parsed, "", rules.recorder);
  DetokenizeCall call;
  KIVI_RETURN_IF_ERROR(check_model(fields, rules));
  const json* tokens = fields.raw("tokens");
  KIVI_RETURN_IF_ERROR(fields.status());
  if (tokens == nullptr || !tokens->is_array())
    return Error{ErrorCode::invalid,
                 fmt::format("tokens is {}, must be a list of token ids",
                             tokens == nullptr ? "missing" : describe(*tokens)),
                 "tokens"};
  call.tokens.reserve(tokens->size());
  for (const json& entry : *tokens) {
    const auto id = as_integer(entry, 0, rules.vocab_size - 1);
    if (!id)
      return Error{ErrorCode::invalid,
                   fmt::format("tokens[{}] is {}, must be a token id in [0, {}]",
                               call.tokens.size(), describe(entry), rules.vocab_size - 1),
                   "tokens"};
    call.tokens.push_back(int32_t(*id));
  }
  KIVI_RETURN_IF_ERROR(take_unknown(fields, rules, call.unknown_fields));
  return call;
}

}  // namespace kivi
