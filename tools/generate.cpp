// SPDX-License-Identifier: Apache-2.0
// kivi generate MODEL -p TEXT: one completion on the terminal, without a server. The engine runs on
// this thread, a step at a time, and the text is printed as it comes.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "engine/serving/chat_prompt.h"
#include "engine/serving/completion.h"
#include "tools/commands.h"

namespace kivi {
namespace {

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

// A chat of one message, and maybe a system message before it.
Result<std::vector<int32_t>> chat_ids(const std::string& text, const std::string& system,
                                      const ServedModel& model) {
  if (model.chat == nullptr)
    return Error{
        ErrorCode::invalid,
        "the model has no chat template. Give one with --chat-template FILE, or leave out --chat",
        "chat"};
  auto messages = nlohmann::ordered_json::array();
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  messages.push_back({{"role", "user"}, {"content", text}});
  ChatInput input;
  input.variables = std::make_shared<const nlohmann::ordered_json>(
      nlohmann::ordered_json{{"messages", messages}});
  return model.chat->ids(input);
}

Result<CompletionRequest> request_of(const GenerateOptions& options, const ServedModel& model) {
  CompletionRequest request;
  request.id = "generate";
  request.streaming = true;
  const std::string text = options.prompt != "-"
                               ? options.prompt
                               : std::string(std::istreambuf_iterator<char>(std::cin), {});
  if (!options.prompt_ids.empty()) {
    request.prompts.emplace_back(
        std::vector<int32_t>(options.prompt_ids.begin(), options.prompt_ids.end()));
  } else if (options.chat) {
    KIVI_ASSIGN_OR_RETURN(std::vector<int32_t> ids, chat_ids(text, options.system, model));
    request.prompts.emplace_back(std::move(ids));
  } else {
    request.prompts.emplace_back(text);
  }
  request.stop = options.stop;
  SamplingParams& p = request.sampling;
  p.temperature = model.default_temperature.value_or(p.temperature);
  p.top_p = model.default_top_p.value_or(p.top_p);
  p.top_k = model.default_top_k.value_or(p.top_k);
  if (options.temperature) p.temperature = float(*options.temperature);
  if (options.top_p) p.top_p = float(*options.top_p);
  if (options.top_k) p.top_k = *options.top_k;
  p.min_p = float(options.min_p);
  p.max_tokens = options.max_tokens;
  p.min_tokens = options.min_tokens;
  p.ignore_eos = options.ignore_eos;
  p.repetition_penalty = float(options.repetition_penalty);
  p.presence_penalty = float(options.presence_penalty);
  p.frequency_penalty = float(options.frequency_penalty);
  return request;
}

// Prints a chunk; the chunk's error, if it has one.
Status print(const TextChunk& chunk, bool ids, bool& first) {
  if (chunk.error) return *chunk.error;
  if (ids) {
    for (const ChunkToken& token : chunk.tokens) {
      fmt::print("{}{}", first ? "" : " ", token.id);
      first = false;
    }
  } else {
    fmt::print("{}", chunk.text);
  }
  std::fflush(stdout);
  return ok_status();
}

// Runs the engine until the completion has ended. `first_token` is when the first chunk came.
Status run(Engine& engine, Completion& completion, bool ids, Clock::time_point& first_token) {
  std::vector<TextChunk> chunks;
  bool first = true;
  for (bool ended = false; !ended;) {
    engine.step();
    chunks.clear();
    ended = completion.poll(chunks);
    if (first_token == Clock::time_point{} && completion.usage().completion_tokens > 0)
      first_token = Clock::now();
    for (const TextChunk& chunk : chunks) KIVI_RETURN_IF_ERROR(print(chunk, ids, first));
  }
  fmt::print("\n");
  return ok_status();
}

}  // namespace

int run_generate(const Arguments& args) {
  Settings settings;
  if (const auto code = read_settings(kGenerate, args, settings)) return *code;
  const GenerateOptions& options = settings.generate;
  if (options.prompt.empty() && options.prompt_ids.empty())
    return report(
        {ErrorCode::invalid, "The prompt is missing. Give -p TEXT or --prompt-ids IDS", "prompt"});
  if (!options.system.empty() && !options.chat)
    return report(
        {ErrorCode::invalid, "--system needs --chat. Add --chat, or leave out --system", "system"});
  const auto loaded = load_with_progress(settings.engine);
  if (!loaded.ok()) return report(loaded.error());
  LoadedModel& model = **loaded;

  const Clock::time_point begin = Clock::now();
  const auto request = request_of(options, model.served);
  if (!request.ok()) return report(request.error());
  const auto completion = Completion::start(model.served, *request, [] {});
  if (!completion.ok()) return report(completion.error());
  Clock::time_point first_token{};
  const Status status = run(*model.engine, **completion, options.ids, first_token);
  if (!status.ok()) return report(status.error());

  const Usage usage = (*completion)->usage();
  const Clock::time_point end = Clock::now();
  if (usage.completion_tokens == 0) return 0;
  const double decode = seconds_between(first_token, end);
  fmt::print(stderr, "[{} prompt tokens, {} generated; first token {:.1f} ms", usage.prompt_tokens,
             usage.completion_tokens, seconds_between(begin, first_token) * 1e3);
  if (usage.completion_tokens > 1)
    fmt::print(stderr, ", then {:.1f} tok/s", (usage.completion_tokens - 1) / decode);
  fmt::print(stderr, "; cache {}]\n", model.plan.format);
  return 0;
}

}  // namespace kivi
