// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/completion.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "engine/serving/choice_text.h"
#include "engine/serving/completion_prompts.h"

namespace kivi {
namespace {

// Which engine requests have news. Shared with the callbacks inside the engine's streams, so that
// they may come at any time, also after the completion is gone.
class ReadyList {
 public:
  explicit ReadyList(std::function<void()> notify) : notify_(std::move(notify)) {}

  // Engine thread.
  void put(int index) {
    {
      std::lock_guard lock(mutex_);
      ready_.push_back(index);
      if (ready_.size() > 1) return;  // the reader has been told
    }
    notify_();
  }

  void take(std::vector<int>& out) {
    std::lock_guard lock(mutex_);
    out.swap(ready_);
    ready_.clear();
  }

 private:
  const std::function<void()> notify_;
  std::mutex mutex_;  // guards ready_
  std::vector<int> ready_;
};

class TextCompletion final : public Completion {
 public:
  TextCompletion(const ServedModel& model, const CompletionRequest& request,
                 std::vector<PromptIds> prompts, std::function<void()> notify);
  ~TextCompletion() override { cancel(); }

  // What the output must be; null = free.
  struct Demands {
    std::shared_ptr<const PreparedFormat> format;
    std::shared_ptr<const TokenRules> rules;
    std::shared_ptr<TokenConstraint> of_choice() const;
  };
  // All or nothing.
  Status submit(Engine& engine, const CompletionRequest& request, const Demands& demands);

  bool poll(std::vector<TextChunk>& out) override;
  void cancel() override;
  Usage usage() const override;
  int completion_tokens(int choice) const override;
  const std::vector<int32_t>& prompt_ids(int prompt) const override {
    return *prompts_.at(size_t(prompt));
  }
  const std::vector<RequestTimes>& times() const override { return times_; }

 private:
  // An engine request. Index: prompt * computed_ + k.
  struct Choice {
    std::shared_ptr<TokenStream> stream;
    ChoiceText text;
    TextChunk chunk;  // not handed out yet
    bool engine_ended = false;
  };

  void read(int index, std::vector<TextChunk>& out);
  void rank(int prompt, std::vector<TextChunk>& out);

  std::vector<PromptIds> prompts_;
  const int delivered_;  // choices a prompt that are handed out: n
  const int computed_;   // choices a prompt: best_of
  const bool streaming_;
  const bool normalize_;
  std::shared_ptr<ReadyList> news_;
  // The streams in it do not change after submit(): cancel() reads them on any thread.
  std::vector<Choice> choices_;
  int cached_tokens_ = 0;           // of the first choice of each prompt
  int unfinished_ = 0;              // engine requests
  std::vector<int> unranked_;       // [prompts] choices that have not ended; best_of > n
  std::vector<int> choice_tokens_;  // [prompts * n]
  std::vector<RequestTimes> times_;
  std::vector<int> ready_;  // kept for their memory
  std::vector<TokenEvent> events_;
};

// Gives a vector length 1, unless all of it is 0.
void normalize(std::vector<float>& vector) {
  double squares = 0;
  for (const float x : vector) squares += double(x) * double(x);
  if (squares == 0) return;
  for (float& x : vector) x = float(double(x) / std::sqrt(squares));
}

std::shared_ptr<const ChoiceOptions> options_of(const ServedModel& model,
                                                const CompletionRequest& request) {
  const SamplingParams& sampling = request.sampling;
  auto options = std::make_shared<ChoiceOptions>();
  options->tokenizer = model.tokenizer;
  options->skip_special_tokens = request.skip_special_tokens;
  options->include_stop_str_in_output = request.include_stop_str_in_output;
  options->echo = request.echo;
  options->show_logprobs = sampling.logprobs >= 0;
  options->show_prompt_logprobs =
      request.echo && (sampling.logprobs >= 0 || sampling.prompt_logprobs >= 0);
  options->min_tokens = sampling.min_tokens;
  options->stop_token_ids = sampling.stop_token_ids;
  options->stop = std::make_shared<const StopStrings>(request.stop);
  return options;
}

TextCompletion::TextCompletion(const ServedModel& model, const CompletionRequest& request,
                               std::vector<PromptIds> prompts, std::function<void()> notify)
    : prompts_(std::move(prompts)),
      delivered_(request.n),
      computed_(std::max(request.n, request.best_of)),
      streaming_(request.streaming),
      normalize_(request.normalize),
      news_(std::make_shared<ReadyList>(std::move(notify))),
      unranked_(prompts_.size(), computed_),
      choice_tokens_(prompts_.size() * size_t(delivered_)) {
  const auto options = options_of(model, request);
  choices_.reserve(prompts_.size() * size_t(computed_));
  for (const PromptIds& prompt : prompts_) {
    for (int k = 0; k < computed_; ++k) {
      choices_.push_back({nullptr, ChoiceText(options, prompt), {}, false});
      choices_.back().chunk.choice = int(choices_.size()) - 1;
    }
  }
}

std::shared_ptr<TokenConstraint> TextCompletion::Demands::of_choice() const {
  std::shared_ptr<TokenConstraint> constraint = format != nullptr ? format->begin() : nullptr;
  return rules != nullptr ? constrain(rules, std::move(constraint)) : constraint;
}

Status TextCompletion::submit(Engine& engine, const CompletionRequest& request,
                              const Demands& demands) {
  SamplingParams sampling = request.sampling;
  if (request.echo)
    sampling.prompt_logprobs = std::max(sampling.prompt_logprobs, sampling.logprobs);
  if (computed_ > delivered_) sampling.logprobs = std::max(sampling.logprobs, 0);  // to rank by
  std::vector<Request> engine_requests;
  engine_requests.reserve(choices_.size());
  for (int i = 0; i < int(choices_.size()); ++i) {
    Request& engine_request = engine_requests.emplace_back();
    engine_request.id = fmt::format("{}/{}", request.id, i);
    engine_request.prompt = *prompts_[size_t(i / computed_)];
    engine_request.sampling = sampling;
    engine_request.pooling = request.pooling;
    if (request.sampling.seed) {
      engine_request.sampling.seed = seed_of_choice(*request.sampling.seed, i % computed_);
    }
    engine_request.constraint = demands.of_choice();
    engine_request.priority = request.priority;
    engine_request.cache = request.cache;
    engine_request.cache_salt = request.cache_salt;
    engine_request.tenant = request.tenant;
    engine_request.arrival = request.arrival;
    engine_request.deadline = request.deadline;
  }
  KIVI_ASSIGN_OR_RETURN(auto streams,
                        engine.submit_all(std::move(engine_requests), [this](size_t i) {
                          return [news = news_, i] { news->put(int(i)); };
                        }));
  for (size_t i = 0; i < streams.size(); ++i) choices_[i].stream = std::move(streams[i]);
  unfinished_ = int(streams.size());
  return ok_status();
}

bool TextCompletion::poll(std::vector<TextChunk>& out) {
  news_->take(ready_);
  for (int index : ready_) read(index, out);
  return unfinished_ == 0;
}

void TextCompletion::read(int index, std::vector<TextChunk>& out) {
  Choice& choice = choices_[size_t(index)];
  const int prompt = index / computed_;
  if (choice.engine_ended) return;
  events_.clear();
  choice.engine_ended = choice.stream->drain(events_);
  const bool had_ended = choice.text.ended();
  for (TokenEvent& event : events_) {
    if (event.finish) {
      times_.push_back(event.times);
      if (index % computed_ == 0) cached_tokens_ += event.cached_tokens;
    }
    choice.text.read(std::move(event), choice.chunk);
    if (normalize_) normalize(choice.chunk.embedding);
  }
  if (choice.engine_ended) {
    --unfinished_;
  } else if (choice.text.ended() && !had_ended) {
    choice.stream->cancel(FinishReason::stop);
  }
  if (had_ended) return;
  if (computed_ > delivered_) {
    if (choice.text.ended() && --unranked_[size_t(prompt)] == 0) rank(prompt, out);
    return;
  }
  choice_tokens_[size_t(index)] = choice.text.completion_tokens();
  const bool anything = !choice.chunk.text.empty() || !choice.chunk.tokens.empty();
  if (choice.text.ended() || (streaming_ && anything)) {
    out.push_back(std::move(choice.chunk));
    choice.chunk = {};
    choice.chunk.choice = index;
  }
}

// The n choices with the largest mean logprob, the best first; failed ones last.
void TextCompletion::rank(int prompt, std::vector<TextChunk>& out) {
  std::vector<Choice*> order;
  for (int k = 0; k < computed_; ++k) order.push_back(&choices_[size_t(prompt * computed_ + k)]);
  const auto failed = [](const Choice* c) { return c->chunk.finish == FinishReason::error; };
  std::stable_sort(order.begin(), order.end(), [&](const Choice* a, const Choice* b) {
    if (failed(a) != failed(b)) return failed(b);
    return a->text.mean_logprob() > b->text.mean_logprob();
  });
  for (int k = 0; k < delivered_; ++k) {
    const int index = prompt * delivered_ + k;
    choice_tokens_[size_t(index)] = order[size_t(k)]->text.completion_tokens();
    out.push_back(std::move(order[size_t(k)]->chunk));
    out.back().choice = index;
  }
}

void TextCompletion::cancel() {
  for (const Choice& choice : choices_) {
    if (choice.stream) choice.stream->cancel(FinishReason::abort);
  }
}

Usage TextCompletion::usage() const {
  Usage usage;
  for (const PromptIds& prompt : prompts_) usage.prompt_tokens += int(prompt->size());
  for (const Choice& choice : choices_) usage.completion_tokens += choice.text.completion_tokens();
  usage.cached_tokens = cached_tokens_;
  return usage;
}

int TextCompletion::completion_tokens(int choice) const {
  return choice_tokens_.at(size_t(choice));
}

}  // namespace

Result<std::shared_ptr<Completion>> Completion::start(const ServedModel& model,
                                                      CompletionRequest request,
                                                      std::function<void()> notify) {
  KIVI_RETURN_IF_ERROR(validate(request, model));
  KIVI_ASSIGN_OR_RETURN(const int choices, count_choices(request, model));
  KIVI_RETURN_IF_ERROR(model.engine->check_room(choices, 0));
  TextCompletion::Demands demands;
  if (request.format) {
    if (model.structured == nullptr)
      return Error{ErrorCode::unsupported,
                   request.format->field + " is not supported by this model's server",
                   request.format->field};
    KIVI_ASSIGN_OR_RETURN(demands.format, model.structured->prepare(
                                              *request.format, request.sampling.stop_token_ids));
  }
  KIVI_ASSIGN_OR_RETURN(demands.rules, rules_of(request, model));
  KIVI_ASSIGN_OR_RETURN(auto prompts, encode_prompts(request, model));
  KIVI_RETURN_IF_ERROR(check_reply_bytes(request, prompts, model));
  int64_t prompt_tokens = 0;
  for (const PromptIds& ids : prompts)
    prompt_tokens += int64_t(ids->size()) * (choices / int64_t(prompts.size()));
  KIVI_RETURN_IF_ERROR(model.engine->check_room(choices, prompt_tokens));
  auto completion =
      std::make_shared<TextCompletion>(model, request, std::move(prompts), std::move(notify));
  KIVI_RETURN_IF_ERROR(completion->submit(*model.engine, request, demands));
  return std::shared_ptr<Completion>(std::move(completion));
}

}  // namespace kivi
