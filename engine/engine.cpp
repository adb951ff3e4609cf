// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "base/log.h"
#include "engine/inbox.h"
#include "engine/scheduler.h"

namespace kivi {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): neighboring inputs give unrelated seeds.
uint64_t next_seed(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Adds the hidden states of a part to the sequence's. False: they are NaN or infinite.
bool add_hidden(Sequence& s, const std::vector<float>& sum) {
  s.hidden.resize(sum.size());
  for (size_t i = 0; i < sum.size(); ++i) s.hidden[i] += double(sum[i]);
  return std::ranges::all_of(sum, [](float x) { return std::isfinite(x); });
}

std::vector<float> pooled(const Sequence& s) {
  const double count = s.request.pooling == Pooling::mean ? double(s.prompt_tokens) : 1;
  std::vector<float> out;
  out.reserve(s.hidden.size());
  for (const double x : s.hidden) out.push_back(float(x / count));
  return out;
}

// While there is nothing but copies and files to wait for, the engine looks at them this often.
constexpr std::chrono::microseconds kTierPoll{500};
// The choice between fetching and computing is logged when it changes, and not more often than
// this.
constexpr std::chrono::seconds kChoiceLog{10};

}  // namespace

struct Engine::Impl {
  Impl(const EngineConfig& settings, EngineLimits limits, const KvLayout& layout,
       const KvCapacity& capacity, std::unique_ptr<StepRunner> step_runner, KvTierSetup tier)
      : config(settings),
        model(std::move(limits)),
        inbox(config.max_num_queued_reqs, config.max_num_queued_tokens),
        cache(layout, capacity, std::move(tier)),
        scheduler(config, cache),
        runner(std::move(step_runner)) {
    context_tokens =
        int(std::min<int64_t>(model.max_model_len, layout.tokens_within(capacity.pages)));
    take_snapshot();
  }

  // --- any thread -------------------------------------------------------------------------------
  Status check(const Request& request) const;
  Status fit_to_context(Request& request) const;

  // --- engine thread ----------------------------------------------------------------------------
  void run(const std::stop_token& stop);
  bool step();
  void admit();
  void end_cancelled(Clock::time_point now);
  bool can_plan_before_results() const;
  bool await_tier(bool worked);
  void launch(const BatchPlan& plan);
  void sample(const BatchPlan& plan);
  void finish_step();
  void trace(const BatchPlan& plan, Clock::time_point begin);
  void note_scheduled(const BatchPlan& plan, Clock::time_point now);
  void emit(const BatchPlan& plan, std::vector<StepResult>& results);
  // Returns true if the sequence goes on.
  bool emit_token(Sequence& s, int position, SampledToken& token, Clock::time_point now);
  void emit_forced(Sequence& s, Clock::time_point now);
  void fail(const BatchPlan& plan, const Error& error);
  void end_broken(Sequence& s, int position, Clock::time_point now);
  void finish(Sequence& s, TokenEvent event, Clock::time_point now);
  void end_all();
  void take_snapshot();
  void log_fetch_choice(Clock::time_point now);
  bool deliver();

  const EngineConfig config;
  const EngineLimits model;
  int context_tokens;  // the model's length, or what the cache holds
  std::atomic<uint64_t> requests_seen{0};
  Inbox inbox;

  // The engine thread's own.
  KvCache cache;
  Scheduler scheduler;
  const std::unique_ptr<StepRunner> runner;
  std::function<void(int, double)> observer;
  std::function<void(const StepTrace&)> tracer;
  Clock::time_point trace_begin;
  Clock::time_point last_collected;  // the end of the step before
  bool logged_fetch = true;          // the choice that was logged last: fetch
  Clock::time_point logged_fetch_at;
  EngineStats counted;
  // The step that is launched and not collected; and sequences that ended while the launched steps
  // up to a number (the first) were still running.
  struct StepInFlight {
    BatchPlan plan;
    Clock::time_point begin;
  };
  std::optional<StepInFlight> in_flight;
  uint64_t steps_launched = 0;
  std::deque<std::pair<uint64_t, std::unique_ptr<Sequence>>> finished;
  // What a step says to the outside, delivered together at its end.
  std::vector<std::pair<std::shared_ptr<TokenStream>, TokenEvent>> events;
  std::vector<Inbox::Key> ended;
  int left_queue_requests = 0;
  int64_t left_queue_tokens = 0;

  mutable std::mutex snapshot_mutex;  // guards snapshot
  EngineStats snapshot;

  std::jthread thread;
};

// --- a step -------------------------------------------------------------------------------------

bool Engine::Impl::step() {
  const Clock::time_point begin = Clock::now();
  admit();               // inbox -> scheduler
  end_cancelled(begin);  // the client is gone, a stop string matched, a deadline passed

  if (!can_plan_before_results()) finish_step();  // the next plan needs to know what it sampled

  if (cache.tier().on()) {
    const uint64_t batches = runner->transfers_done();
    scheduler.note_transfers(batches, runner->transfer_seconds());
  }
  BatchPlan plan = scheduler.plan();
  if (cache.tier().on()) log_fetch_choice(begin);
  note_scheduled(plan, begin);
  if (!plan.transfers.empty()) runner->transfer(plan.transfers);
  if (plan.empty() && !in_flight) return await_tier(deliver() || !plan.transfers.empty());

  const bool late = std::ranges::any_of(plan.sequences, [](const PlannedSequence& p) {
    return p.samples && p.sequence->needs_last_token();
  });
  if (!plan.empty()) launch(plan);
  if (!plan.empty() && !late) sample(plan);
  finish_step();  // the step before this one, while this one runs
  if (!plan.empty() && late) sample(plan);
  if (!plan.empty()) in_flight.emplace(StepInFlight{std::move(plan), begin});
  if (!runner->asynchronous()) finish_step();
  deliver();
  return true;
}

// Without a step to compute: true if there is more to do, now or soon.
bool Engine::Impl::await_tier(bool worked) {
  if (worked || !cache.tier().busy()) return worked;
  inbox.wait_for(kTierPoll);
  return true;
}

void Engine::Impl::launch(const BatchPlan& plan) {
  runner->launch(plan);
  ++steps_launched;
  scheduler.commit(plan);
}

void Engine::Impl::sample(const BatchPlan& plan) {
  runner->sample(plan);
  // A sequence may have the token already: its constraint forced it.
  for (const PlannedSequence& part : plan.sequences)
    if (part.samples && int(part.sequence->tokens.size()) == part.past + part.count)
      push_placeholder(*part.sequence);
}

// Scored and pooled prompts need the last step's results on the host.
bool Engine::Impl::can_plan_before_results() const {
  return in_flight && std::ranges::none_of(in_flight->plan.sequences, [](const PlannedSequence& p) {
           return p.scores_prompt || p.hidden != HiddenRows::none;
         });
}

void Engine::Impl::finish_step() {
  if (!in_flight) return;
  Result<std::vector<StepResult>> results = runner->collect();
  // While a step ran, the next one was planned. So its own time begins at the end of the one
  // before.
  const Clock::time_point now = Clock::now();
  const std::chrono::duration<double> own = now - std::max(in_flight->begin, last_collected);
  last_collected = now;
  if (results.ok()) scheduler.note_step(in_flight->plan, own.count());
  if (results.ok())
    emit(in_flight->plan, *results);
  else
    fail(in_flight->plan, results.error());
  ++counted.steps;
  counted.step_tokens += uint64_t(in_flight->plan.rows);
  if (observer) {
    const std::chrono::duration<double> took = Clock::now() - in_flight->begin;
    observer(in_flight->plan.rows, took.count());
  }
  if (tracer) trace(in_flight->plan, in_flight->begin);
  in_flight.reset();
  while (!finished.empty() && finished.front().first <= counted.steps) finished.pop_front();
}

void Engine::Impl::trace(const BatchPlan& plan, Clock::time_point begin) {
  StepTrace t;
  t.step = counted.steps;
  t.rows = plan.rows;
  t.sequences = int(plan.sequences.size());
  for (const PlannedSequence& p : plan.sequences) {
    t.decodes += p.count == 1 && p.samples && p.mode == KvMode::append ? 1 : 0;
    t.context_tokens += p.past;
  }
  t.planned = begin - trace_begin;
  t.collected = Clock::now() - trace_begin;
  t.device = runner->step_times();
  tracer(t);
}

void Engine::Impl::admit() {
  for (std::unique_ptr<Sequence>& sequence : inbox.take()) scheduler.add(std::move(sequence));
}

void Engine::Impl::end_cancelled(Clock::time_point now) {
  for (Sequence* s : scheduler.sequences()) {
    if (const auto reason = s->stream->cancelled()) {
      finish(*s, {.finish = *reason}, now);
    } else if (s->request.deadline && now >= *s->request.deadline) {
      Error error{ErrorCode::deadline,
                  fmt::format("the deadline passed after {} output tokens", s->output_tokens())};
      finish(*s, {.finish = FinishReason::abort, .error = std::move(error)}, now);
    }
  }
}

void Engine::Impl::note_scheduled(const BatchPlan& plan, Clock::time_point now) {
  for (const PlannedSequence& part : plan.sequences) {
    Sequence& s = *part.sequence;
    if (s.times.first_scheduled != Clock::time_point{}) continue;
    s.times.first_scheduled = now;
    ++left_queue_requests;
    left_queue_tokens += s.prompt_tokens;
    counted.prompt_tokens += uint64_t(s.prompt_tokens);
  }
  if (left_queue_requests > 0) inbox.leave_queue(left_queue_requests, left_queue_tokens);
  left_queue_requests = 0;
  left_queue_tokens = 0;
  take_snapshot();
}

void Engine::Impl::emit(const BatchPlan& plan, std::vector<StepResult>& results) {
  KIVI_VERIFY(results.size() == plan.sequences.size());
  scheduler.settle(plan);
  const Clock::time_point now = Clock::now();
  for (size_t i = 0; i < results.size(); ++i) {
    const PlannedSequence& part = plan.sequences[i];
    Sequence& s = *part.sequence;
    if (s.state == SequenceState::finished) continue;  // ended while the step was running
    if (part.samples && s.tokens[size_t(part.past + part.count)] != -1) continue;  // was forced
    if ((part.samples && results[i].token.broken) ||
        std::ranges::any_of(results[i].scored, &SampledToken::broken)) {
      end_broken(s, part.past + part.count, now);
      continue;
    }
    if (part.hidden != HiddenRows::none && !add_hidden(s, results[i].hidden)) {
      end_broken(s, part.past + part.count, now);
      continue;
    }
    std::ranges::move(results[i].scored, std::back_inserter(s.prompt_logprobs));
    if (!part.completes) continue;
    if (!s.prompt_logprobs.empty())
      events.emplace_back(s.stream,
                          TokenEvent{.prompt_logprobs = std::exchange(s.prompt_logprobs, {})});
    if (part.samples) {
      const bool goes_on = emit_token(s, part.past + part.count, results[i].token, now);
      if (goes_on && s.request.constraint != nullptr) emit_forced(s, now);
    } else {
      finish(s, {.hidden = pooled(s), .finish = FinishReason::length}, now);  // max_tokens 0
    }
  }
}

bool Engine::Impl::emit_token(Sequence& s, int position, SampledToken& token,
                              Clock::time_point now) {
  if (position == s.prompt_tokens) s.times.first_token = now;
  ++counted.generation_tokens;
  TokenEvent event{.id = token.id, .logprob = token.logprob, .top = std::move(token.top)};
  event.finish = set_sampled(s, position, token.id);
  event.stopped_by_token =
      event.finish == FinishReason::stop && std::ranges::binary_search(s.stop_ids, token.id);
  if (event.finish == FinishReason::error)
    event.error = Error{ErrorCode::internal,
                        fmt::format("the structured output cannot go on with token {} at position "
                                    "{}: its grammar is too ambiguous",
                                    token.id, position)};
  if (event.finish) {
    finish(s, std::move(event), now);
    return false;
  }
  events.emplace_back(s.stream, std::move(event));
  return true;
}

// Appends the tokens that the sequence's constraint forces, as if they had been sampled. The next
// step computes them together. Where log probabilities are wanted, the sampler gives them.
void Engine::Impl::emit_forced(Sequence& s, Clock::time_point now) {
  if (s.request.sampling.logprobs >= 0 || s.state != SequenceState::running) return;
  while (const auto id = s.request.constraint->forced()) {
    push_placeholder(s);
    ++counted.forced_tokens;
    SampledToken token{.id = *id};
    if (!emit_token(s, int(s.tokens.size()) - 1, token, now)) return;
  }
}

// The weights hold such values, or a step overflowed. What would follow is no text of the model's.
void Engine::Impl::end_broken(Sequence& s, int position, Clock::time_point now) {
  ++counted.broken_logits;
  Error error{ErrorCode::internal,
              fmt::format("the model's logits at position {} are not finite (NaN or infinity): its "
                          "weights or its dtype do not fit",
                          position)};
  if (s.request.constraint != nullptr)
    error.message = fmt::format(
        "no token that the structured output allows at position {} has a finite logit: the "
        "vocabulary cannot spell it, or the model's logits are not finite",
        position);
  log_error("request {}: {}", s.request.id, error.message);
  finish(s, {.finish = FinishReason::error, .error = std::move(error)}, now);
  // The values that overflowed may be in its pages. A format that forbids every token is the
  // request's own matter, and no reason to forget what others have computed.
  if (s.request.constraint != nullptr) return;
  Sequence* const suspect = &s;
  scheduler.forget_prefixes({&suspect, 1});
}

void Engine::Impl::fail(const BatchPlan& plan, const Error& error) {
  log_error("a step of {} sequences and {} rows failed: {}", plan.sequences.size(), plan.rows,
            error.message);
  const Clock::time_point now = Clock::now();
  std::vector<Sequence*> suspects;
  for (const PlannedSequence& part : plan.sequences) {
    suspects.push_back(part.sequence);
    if (part.sequence->state != SequenceState::finished)
      finish(*part.sequence, {.finish = FinishReason::error, .error = error}, now);
  }
  scheduler.forget_prefixes(suspects);
}

void Engine::Impl::finish(Sequence& s, TokenEvent event, Clock::time_point now) {
  if (s.times.first_scheduled == Clock::time_point{}) {
    ++left_queue_requests;
    left_queue_tokens += s.prompt_tokens;
  }
  s.times.finished = now;
  event.times = s.times;
  event.cached_tokens = std::max(s.cached_tokens, 0);
  ++counted.finished[int(*event.finish)];
  events.emplace_back(s.stream, std::move(event));
  ended.emplace_back(s.request.id, s.order);
  // What it held may be given to others at once: steps run in order. The record itself must outlive
  // the steps under way.
  finished.emplace_back(steps_launched, scheduler.remove(&s));
  while (!finished.empty() && finished.front().first <= counted.steps) finished.pop_front();
}

bool Engine::Impl::deliver() {
  if (events.empty()) return false;
  take_snapshot();
  for (auto& [stream, event] : events) stream->push(std::move(event));
  events.clear();
  inbox.retire(ended);
  ended.clear();
  return true;
}

void Engine::Impl::take_snapshot() {
  counted.running = scheduler.running();
  counted.waiting = scheduler.waiting();
  counted.waiting_tokens = scheduler.waiting_tokens();
  counted.preemptions = scheduler.preemptions();
  counted.prefix = scheduler.prefix_counts();
  counted.prefix_pages = cache.prefixes().evictable();
  counted.prefix_checkpoints = cache.prefixes().checkpoints_kept();
  counted.tier = cache.tier().stats();
  counted.tier.page_bytes = cache.tier().on() ? cache.layout().page_bytes() : 0;
  counted.tier.rates = scheduler.fetch_rates();
  counted.fetch = scheduler.fetch_counts();
  counted.kv_bytes = cache.bytes_held();
  counted.kv_pages_total = cache.capacity().pages;
  counted.kv_pages_free = cache.pages_free();
  counted.kv_slots_total = cache.capacity().slots;
  counted.kv_slots_free = cache.slots_free();
  counted.staging_pages_total = cache.capacity().staging_pages;
  counted.staging_pages_free = cache.staging_pages_free();
  const std::lock_guard lock(snapshot_mutex);
  snapshot = counted;
}

void Engine::Impl::log_fetch_choice(Clock::time_point now) {
  const FetchReach& choice = scheduler.fetch_counts().last;
  const bool fetches = choice.end > 0;
  if (choice.longest == 0 || config.kv_fetch != KvFetch::automatic || fetches == logged_fetch ||
      now - logged_fetch_at < kChoiceLog)
    return;
  logged_fetch = fetches;
  logged_fetch_at = now;
  const FetchRates rates = scheduler.fetch_rates();
  const double page_gb = double(cache.layout().page_bytes()) * 1e-9;
  log_info(
      "prefix cache: {} tokens of a prompt are {}, because fetching them is estimated at {:.1f} ms "
      "and computing them at {:.1f} ms ({:.0f} prompt tokens/s, {:.2f} GB/s from the host, {:.2f} "
      "GB/s from disk)",
      fetches ? choice.end : choice.longest, fetches ? "fetched" : "computed",
      choice.fetch_seconds * 1e3, choice.compute_seconds * 1e3, rates.tokens, rates.pages * page_gb,
      rates.disk_pages * page_gb);
}

// --- the engine thread --------------------------------------------------------------------------

void Engine::Impl::run(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    const bool idle =
        scheduler.running() + scheduler.waiting() == 0 && !in_flight && !cache.tier().busy();
    if (idle && !inbox.wait(stop)) break;
    step();
  }
}

void Engine::Impl::end_all() {
  inbox.close();
  inbox.cancel_all();
  admit();
  finish_step();
  end_cancelled(Clock::now());
  note_scheduled({}, {});
  deliver();
}

// --- the public face ----------------------------------------------------------------------------

Engine::Engine(const EngineConfig& config, EngineLimits model, const KvLayout& layout,
               const KvCapacity& capacity, std::unique_ptr<StepRunner> runner, KvTierSetup tier)
    : impl_(std::make_unique<Impl>(config, std::move(model), layout, capacity, std::move(runner),
                                   std::move(tier))) {}

Engine::~Engine() {
  if (impl_->thread.joinable()) {
    impl_->thread.request_stop();
    impl_->thread.join();
  }
  impl_->end_all();
}

Status Engine::Impl::check(const Request& request) const {
  if (request.prompt.empty())
    return Error{ErrorCode::invalid, "prompt has 0 tokens, must have at least 1", "prompt"};
  for (const int32_t id : request.prompt)
    if (id < 0 || id >= model.vocab_size)
      return Error{
          ErrorCode::invalid,
          fmt::format("prompt holds token id {}, must be from 0 to {}", id, model.vocab_size - 1),
          "prompt"};
  if (request.pooling != Pooling::none && request.sampling.max_tokens != 0)
    return Error{ErrorCode::invalid,
                 fmt::format("max_tokens is {}, must be 0 for a request that pools hidden states",
                             request.sampling.max_tokens),
                 "max_tokens"};
  return validate(request.sampling, model.vocab_size, config.max_logprobs);
}

// Cuts max_tokens to what the context still holds.
Status Engine::Impl::fit_to_context(Request& request) const {
  const int64_t prompt = int64_t(request.prompt.size());
  const int64_t left = context_tokens - prompt;
  int& max_tokens = request.sampling.max_tokens;
  if (left < (max_tokens > 0 ? 1 : 0) || !cache.fits_ever(int(prompt)))
    return Error{ErrorCode::context_length,
                 fmt::format("This model's maximum context length is {} tokens. The prompt has {} "
                             "tokens and must leave room for {} more (the length is {}).",
                             context_tokens, prompt, std::min(max_tokens, 1),
                             context_tokens < model.max_model_len ? "what the key-value cache holds"
                                                                  : "max_model_len"),
                 "prompt"};
  max_tokens = int(std::min<int64_t>(max_tokens, left));
  return ok_status();
}

Result<std::shared_ptr<TokenStream>> Engine::submit(Request request, std::function<void()> notify) {
  KIVI_RETURN_IF_ERROR(impl_->check(request));
  KIVI_RETURN_IF_ERROR(impl_->fit_to_context(request));
  KIVI_RETURN_IF_ERROR(impl_->inbox.check_room(1, int64_t(request.prompt.size())));
  auto stream = std::make_shared<TokenStream>(std::move(notify));
  const uint64_t seed =
      next_seed(impl_->config.seed + next_seed(impl_->requests_seen.fetch_add(1)));
  std::unique_ptr<Sequence> sequence =
      make_sequence(std::move(request), stream, seed, impl_->model.eos_token_ids);
  impl_->scheduler.name_blocks(*sequence, nullptr);
  KIVI_RETURN_IF_ERROR(impl_->inbox.put(std::move(sequence)));
  return stream;
}

Result<std::vector<std::shared_ptr<TokenStream>>> Engine::submit_all(
    std::vector<Request> requests, const std::function<std::function<void()>(size_t)>& notify_of) {
  for (Request& request : requests) {
    KIVI_RETURN_IF_ERROR(impl_->check(request));
    KIVI_RETURN_IF_ERROR(impl_->fit_to_context(request));
  }
  int64_t tokens = 0;
  for (const Request& request : requests) tokens += int64_t(request.prompt.size());
  KIVI_RETURN_IF_ERROR(impl_->inbox.check_room(int(requests.size()), tokens));
  std::vector<std::shared_ptr<TokenStream>> streams;
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (Request& request : requests) {
    streams.push_back(std::make_shared<TokenStream>(notify_of(streams.size())));
    const uint64_t seed =
        next_seed(impl_->config.seed + next_seed(impl_->requests_seen.fetch_add(1)));
    sequences.push_back(
        make_sequence(std::move(request), streams.back(), seed, impl_->model.eos_token_ids));
    impl_->scheduler.name_blocks(*sequences.back(),
                                 sequences.size() > 1 ? sequences.front().get() : nullptr);
  }
  KIVI_RETURN_IF_ERROR(impl_->inbox.put_all(std::move(sequences)));
  return streams;
}

Status Engine::check_room(int requests, int64_t prompt_tokens) const {
  return impl_->inbox.check_room(requests, prompt_tokens);
}

void Engine::start() {
  KIVI_VERIFY(!impl_->thread.joinable());
  impl_->thread =
      std::jthread([impl = impl_.get()](const std::stop_token& stop) { impl->run(stop); });
}

void Engine::run_until_idle() {
  KIVI_VERIFY(!impl_->thread.joinable());
  while (impl_->step()) {
  }
}

bool Engine::step() {
  KIVI_VERIFY(!impl_->thread.joinable());
  return impl_->step();
}

bool Engine::drain(std::chrono::milliseconds timeout) {
  impl_->inbox.close();
  if (impl_->inbox.wait_until_empty(timeout)) return true;
  abort_all();
  return false;
}

void Engine::abort_all() { impl_->inbox.cancel_all(); }

bool Engine::abort(const std::string& request_id) { return impl_->inbox.cancel(request_id); }

EngineStats Engine::stats() const {
  EngineStats stats;
  {
    const std::lock_guard lock(impl_->snapshot_mutex);
    stats = impl_->snapshot;
  }
  stats.waiting += impl_->inbox.size();
  return stats;
}

void Engine::on_step(std::function<void(int rows, double seconds)> observer) {
  impl_->observer = std::move(observer);
}

void Engine::on_trace(std::function<void(const StepTrace&)> observer) {
  impl_->tracer = std::move(observer);
  impl_->trace_begin = Clock::now();
  impl_->runner->time_steps(impl_->tracer != nullptr);
}

void Engine::on_logits(LogitsObserver observer) {
  impl_->runner->observe_logits(std::move(observer));
}

void Engine::observe_prefixes(PrefixObserver* observer) {
  impl_->cache.prefixes().observe(observer);
}

const EngineLimits& Engine::model() const { return impl_->model; }
const EngineConfig& Engine::config() const { return impl_->config; }

}  // namespace kivi
