// SPDX-License-Identifier: Apache-2.0
#include "bench/client/figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/percentile.h"
#include "bench/client/text.h"

namespace kivi::load {
namespace {

double tpot_ms(const RequestRecord& r) {
  return r.output_tokens > 1 ? 1e3 * (r.last_token - r.first_token) / (r.output_tokens - 1) : 0;
}

// A stream that came in one piece says nothing of the time between its tokens, so it keeps no limit
// on that.
bool keeps_tpot(const RequestRecord& r, double limit_ms) {
  return r.output_tokens < 2 || (r.token_events > 1 && tpot_ms(r) <= limit_ms);
}

bool is_good(const RequestRecord& r, const Slo& slo) {
  return r.outcome == Outcome::completed &&
         (!slo.ttft || 1e3 * (r.first_token - r.due) <= *slo.ttft) &&
         (!slo.tpot || keeps_tpot(r, *slo.tpot)) &&
         (!slo.e2el || 1e3 * (r.ended - r.due) <= *slo.e2el);
}

void add_counts(const RunResult& run, const Slo& slo, Figures& f) {
  int good = 0;
  for (const RequestRecord& r : run.records) {
    good += is_good(r, slo);
    if (r.outcome == Outcome::completed) {
      ++f.completed;
      f.input_tokens += r.prompt_tokens;
      f.output_tokens += r.output_tokens;
      f.server_counts &= r.server_count;
    } else if (r.outcome == Outcome::cancelled) {
      ++f.cancelled;
      f.cancelled_output_tokens += r.output_tokens;
    } else {
      ++f.failed;
      ErrorCount& error = f.errors[r.error_kind];
      if (error.count++ == 0) error.example = r.error_message;
    }
  }
  const double seconds = std::max(f.seconds, 1e-9);
  f.requests_per_s = f.completed / seconds;
  f.output_tokens_per_s = double(f.output_tokens) / seconds;
  f.total_tokens_per_s = double(f.input_tokens + f.output_tokens) / seconds;
  if (slo.any()) {
    f.goodput = good / seconds;
    f.good_share = double(good) / std::max(1, f.requests - f.cancelled);
  }
}

void add_latencies(const RunResult& run, Figures& f) {
  std::vector<double> ttft, tpot, itl, e2el, late;
  for (const RequestRecord& r : run.records) {
    late.push_back(1e3 * r.late);
    if (r.outcome != Outcome::completed) continue;
    ttft.push_back(1e3 * (r.first_token - r.due));
    e2el.push_back(1e3 * (r.ended - r.due));
    if (r.output_tokens > 1 && r.token_events > 1) tpot.push_back(tpot_ms(r));
    for (const float gap : r.gaps) itl.push_back(1e3 * double(gap));
  }
  f.ttft = latency_of(std::move(ttft));
  f.tpot = latency_of(std::move(tpot));
  f.itl = latency_of(std::move(itl));
  f.e2el = latency_of(std::move(e2el));
  f.late = latency_of(std::move(late));
}

// Requests at once, at most: +1 at each start, -1 at each end.
int concurrent_max(const std::vector<RequestRecord>& records) {
  std::vector<std::pair<double, int>> changes;
  for (const RequestRecord& r : records) {
    changes.emplace_back(r.started, 1);
    changes.emplace_back(r.ended, -1);
  }
  std::sort(changes.begin(), changes.end());  // an end before a start at the same time
  int now = 0, most = 0;
  for (const auto& [time, change] : changes) most = std::max(most, now += change);
  return most;
}

// Adds the share of [begin, end) that lies in each second.
void add_interval(std::vector<double>& seconds, double begin, double end) {
  for (auto i = size_t(std::max(0.0, begin)); i < seconds.size() && double(i) < end; ++i)
    seconds[i] += std::min(end, double(i + 1)) - std::max(begin, double(i));
}

Timeline timeline_of(const RunResult& run) {
  const auto count = size_t(std::ceil(run.seconds)) + (run.seconds <= 0 ? 1 : 0);
  Timeline t{std::vector<double>(count), std::vector<double>(count), std::vector<int>(count),
             std::vector<int>(count)};
  const auto at = [&](double time) { return size_t(std::clamp(time, 0.0, double(count) - 0.5)); };
  for (const RequestRecord& r : run.records) {
    ++t.started[at(r.started)];
    t.failed[at(r.ended)] += r.outcome == Outcome::failed;
    add_interval(t.in_flight, r.started, r.ended);
    // An event may stand for several tokens: the sum is the request's count.
    const double tokens = r.token_events > 0 ? double(r.output_tokens) / r.token_events : 0;
    double time = r.first_token;
    if (r.token_events > 0) t.output_tokens[at(time)] += tokens;
    for (const float gap : r.gaps) t.output_tokens[at(time += double(gap))] += tokens;
  }
  return t;
}

std::string bottleneck_of(const Figures& f) {
  const double limit = std::max(kLateMs, kLateOfTtft * f.ttft.p50);
  if (f.busiest_thread_share && *f.busiest_thread_share > kBusyThread)
    return fmt::format(
        "one of its threads used {:.0f} % of a core; give it more --threads or cores",
        100 * *f.busiest_thread_share);
  if (!f.busiest_thread_share && f.cpu_share > kBusyThread * f.cores)
    return fmt::format("it used {:.1f} of {} cores; give it more cores", f.cpu_share, f.cores);
  if (f.late.p99 > limit)
    return fmt::format("it started requests late, p99 {:.1f} ms; its threads or its cores are busy",
                       f.late.p99);
  if (f.loop_delay.p99 > limit)
    return fmt::format("its event loop ran late, p99 {:.1f} ms; the machine's cores are busy",
                       f.loop_delay.p99);
  return "";
}

}  // namespace

Latency latency_of(std::vector<double> samples) {
  Latency out;
  if (samples.empty()) return out;
  std::sort(samples.begin(), samples.end());
  out.count = samples.size();
  out.mean = std::accumulate(samples.begin(), samples.end(), 0.0) / double(samples.size());
  double squares = 0;
  for (const double x : samples) squares += (x - out.mean) * (x - out.mean);
  out.std = std::sqrt(squares / double(samples.size()));
  out.p50 = percentile(samples, 50);
  out.p90 = percentile(samples, 90);
  out.p99 = percentile(samples, 99);
  out.p999 = percentile(samples, 99.9);
  out.sorted = std::move(samples);
  return out;
}

Result<Slo> parse_slo(const std::string& text) {
  const Error bad{ErrorCode::invalid,
                  "NAME:MILLISECONDS with a name of ttft, tpot, e2el, separated by commas"};
  Slo slo;
  for (const std::string& part : split(text, ',')) {
    const std::vector<std::string> pair = split(part, ':');
    const auto limit = pair.size() == 2 ? parse_number<double>(pair[1]) : std::nullopt;
    if (!limit || *limit <= 0) return bad;
    if (pair[0] == "ttft")
      slo.ttft = limit;
    else if (pair[0] == "tpot")
      slo.tpot = limit;
    else if (pair[0] == "e2el")
      slo.e2el = limit;
    else
      return bad;
  }
  return slo;
}

std::string busiest_thread_text(const Figures& f) {
  return f.busiest_thread_share ? fmt::format("{:.0f} %", 100 * *f.busiest_thread_share)
                                : "not measured";
}

Figures figures_of(const RunResult& run, const Slo& slo) {
  Figures f;
  f.requests = int(run.records.size());
  f.seconds = run.seconds;
  add_counts(run, slo, f);
  add_latencies(run, f);
  f.concurrent_max = concurrent_max(run.records);
  f.timeline = timeline_of(run);
  // The last second may be a part; in a run shorter than one, the run's mean is the only rate.
  const auto whole = size_t(std::max(0.0, run.seconds));
  f.output_tokens_per_s_max = f.output_tokens_per_s;
  for (size_t i = 0; i < std::min(whole, f.timeline.output_tokens.size()); ++i)
    f.output_tokens_per_s_max = std::max(f.output_tokens_per_s_max, f.timeline.output_tokens[i]);
  f.cpu_seconds = run.generator.cpu_seconds;
  f.cpu_share = run.seconds > 0 ? f.cpu_seconds / run.seconds : 0;
  f.cores = run.generator.cores;
  f.busiest_thread_share = run.generator.busiest_thread_share;
  std::vector<double> delays;
  for (const float delay : run.generator.loop_delays) delays.push_back(1e3 * double(delay));
  f.loop_delay = latency_of(std::move(delays));
  f.bottleneck = bottleneck_of(f);
  return f;
}

}  // namespace kivi::load
