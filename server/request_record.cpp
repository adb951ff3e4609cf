// SPDX-License-Identifier: Apache-2.0
#include "server/request_record.h"

#include <fmt/format.h>

#include <chrono>
#include <iterator>

#include "base/log.h"
#include "server/json_writer.h"
#include "server/server_state.h"
#include "server/span_exporter.h"

namespace kivi {
namespace {

std::string reasons(const std::vector<FinishReason>& finish) {
  std::string out;
  for (const FinishReason reason : finish) {
    if (!out.empty()) out += ',';
    out += name_of(reason);
  }
  return out.empty() ? "-" : out;
}

std::string in_milliseconds(const std::optional<double>& seconds) {
  return seconds ? fmt::format("{:.1f}", *seconds * 1000) : "-";
}

void write_line(const RequestRecord& r, double seconds) {
  std::string line = fmt::format("{} ", r.protocol);
  if (!r.method.empty()) line += fmt::format("{} ", r.method);
  fmt::format_to(std::back_inserter(line), "{} {} {:.0f} ms request_id={} key={}", r.path, r.status,
                 seconds * 1000, r.request_id.empty() ? "-" : r.request_id,
                 r.tenant.empty() ? "-" : r.tenant);
  if (const auto& f = r.figures)
    fmt::format_to(std::back_inserter(line),
                   " prompt_tokens={} cached_tokens={} completion_tokens={} queue_ms={} ttft_ms={} "
                   "tpot_ms={} finish={}",
                   f->usage.prompt_tokens, f->usage.cached_tokens, f->usage.completion_tokens,
                   in_milliseconds(f->queue), in_milliseconds(f->time_to_first_token),
                   in_milliseconds(f->time_per_token), reasons(f->finish));
  if (!r.trace.parent_id.empty())
    fmt::format_to(std::back_inserter(line), " trace_id={}", r.trace.trace_id);
  if (!r.objective.empty()) line += " objective=" + r.objective;
  if (!r.fairness_id.empty()) line += " fairness_id=" + r.fairness_id;
  log_text(LogLevel::info, line);
}

// The attributes of a span, in the encoding of OTLP.
class Attributes {
 public:
  void text(const char* key, std::string_view value) {
    begin(key, "stringValue");
    append_json_string(json_, value);
    json_ += "}}";
  }
  void integer(const char* key, int64_t value) {
    begin(key, "intValue");
    json_ += fmt::format("\"{}\"}}}}", value);
  }
  void number(const char* key, double value) {
    begin(key, "doubleValue");
    json_ += fmt::format("{}}}}}", value);
  }
  void texts(const char* key, const std::vector<FinishReason>& values) {
    begin(key, "arrayValue");
    json_ += "{\"values\":";
    append_json_list(json_, values, [&](FinishReason reason) {
      json_ += "{\"stringValue\":";
      append_json_string(json_, name_of(reason));
      json_ += '}';
    });
    json_ += "}}}";
  }
  std::string take() { return std::move(json_); }

 private:
  void begin(const char* key, const char* kind) {
    if (!json_.empty()) json_ += ',';
    json_ += fmt::format("{{\"key\":\"{}\",\"value\":{{\"{}\":", key, kind);
  }
  std::string json_;
};

std::string attributes_of(const RequestRecord& r, const std::string& model, double seconds) {
  Attributes a;
  const RequestAsked& asked = *r.asked;
  a.text("gen_ai.operation.name", asked.operation);
  a.text("gen_ai.provider.name", "kivi");
  a.text("gen_ai.request.model", model);
  a.text("gen_ai.response.model", model);
  a.text("gen_ai.response.id", asked.reply_id);
  a.integer("gen_ai.request.max_tokens", asked.max_tokens);
  a.integer("gen_ai.request.choice.count", asked.n);
  a.number("gen_ai.request.temperature", asked.temperature);
  a.number("gen_ai.request.top_p", asked.top_p);
  if (asked.top_k > 0) a.integer("gen_ai.request.top_k", asked.top_k);
  const RequestFigures& f = *r.figures;
  a.integer("gen_ai.usage.input_tokens", f.usage.prompt_tokens);
  a.integer("gen_ai.usage.cache_read.input_tokens", f.usage.cached_tokens);
  a.integer("gen_ai.usage.output_tokens", f.usage.completion_tokens);
  a.texts("gen_ai.response.finish_reasons", f.finish);
  if (f.queue) a.number("gen_ai.latency.time_in_queue", *f.queue);
  if (f.time_to_first_token) a.number("gen_ai.latency.time_to_first_token", *f.time_to_first_token);
  a.number("gen_ai.latency.e2e", seconds);
  a.text("url.path", r.path);
  a.text("kivi.request_id", r.request_id);
  a.text("kivi.status", r.status);
  return a.take();
}

}  // namespace

RequestAsked asked_of(const CompletionRequest& request, const char* operation) {
  const SamplingParams& s = request.sampling;
  return {operation, request.id, s.max_tokens, s.temperature, s.top_p, s.top_k, request.n};
}

bool wants_records(const ServerState& state) {
  return state.config().enable_log_requests || state.span_exporter() != nullptr;
}

void record_request(ServerState& state, const RequestRecord& record) {
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - record.arrival).count();
  if (state.config().enable_log_requests) write_line(record, seconds);
  SpanExporter* const exporter = state.span_exporter();
  if (exporter == nullptr || !record.asked || !record.figures || !record.trace.sampled) return;
  if (!exporter->has_room()) return exporter->drop();
  const ServedModel* model = state.model();
  const std::string name = model == nullptr ? "" : model->name;
  const auto wall = std::chrono::system_clock::now();
  RequestSpan span;
  span.trace = record.trace;
  span.name = fmt::format("{} {}", record.asked->operation, name);
  span.end = wall;
  span.begin =
      wall - std::chrono::duration_cast<std::chrono::system_clock::duration>(now - record.arrival);
  span.attributes = attributes_of(record, name, seconds);
  span.failed = record.failed;
  exporter->add(std::move(span));
}

}  // namespace kivi
