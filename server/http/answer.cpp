// SPDX-License-Identifier: Apache-2.0
#include "server/http/answer.h"

#include <utility>

#include "server/gateway.h"
#include "server/http/worker.h"

namespace kivi {
namespace asio = boost::asio;

namespace {

constexpr Clock::time_point kNever = Clock::time_point::max();
constexpr std::chrono::seconds kPingInterval{15};

// What both ways of answering share: the chunks as they come, counted.
class Reader {
 public:
  Reader(HttpConnection& connection, const Started& started)
      : connection_(connection),
        started_(started),
        completion_(*started.completion),
        metrics_(connection.shared().state.metrics(), connection.request().arrival) {}

  // Appends what is ready to `chunks`; true: the completion has ended, by itself or by the first
  // error of a choice.
  bool poll(std::vector<TextChunk>& chunks) {
    const size_t before = chunks.size();
    const bool ended = completion_.poll(chunks);
    const std::span<const TextChunk> fresh = std::span<const TextChunk>(chunks).subspan(before);
    metrics_.polled(completion_, fresh);
    count_usage();
    for (const TextChunk& chunk : fresh) {
      if (chunk.finish == FinishReason::abort && !aborted_) aborted_ = "api";
      if (chunk.finish == FinishReason::abort && started_.call.request.pooling != Pooling::none)
        error_ = Error{ErrorCode::unavailable, "the request was aborted"};
      if (error_ || (!chunk.error && chunk.finish != FinishReason::error)) continue;
      error_ = chunk.error.value_or(Error{ErrorCode::internal, "the request failed"});
    }
    if (error_) completion_.cancel();
    return ended || error_.has_value();
  }

  const std::optional<Error>& error() const { return error_; }
  void first_write() { metrics_.first_write(); }

  // Once, before the last bytes go out: then a client that has its reply finds it counted.
  void finish() {
    if (connection_.gone() != nullptr)
      aborted_ = connection_.gone();
    else if (error_ && error_->code == ErrorCode::deadline)
      aborted_ = "deadline";
    else if (aborted_ && connection_.shared().state.draining())
      aborted_ = "shutdown";
    if (aborted_) connection_.shared().state.metrics().request_aborted(aborted_);
    metrics_.finished(completion_);
    if (wants_records(connection_.shared().state))
      connection_.note(asked_of(started_.call.request, started_.operation), metrics_.figures());
    count_usage();
    connection_.permit().reset();
  }

 private:
  void count_usage() {
    const Usage usage = completion_.usage();
    connection_.permit().used(int64_t(usage.prompt_tokens) + usage.completion_tokens);
  }

  HttpConnection& connection_;
  const Started& started_;
  Completion& completion_;
  RequestMetrics metrics_;
  std::optional<Error> error_;
  const char* aborted_ = nullptr;
};

asio::awaitable<void> answer_whole(HttpConnection& connection, const Started& started) {
  Reader reader(connection, started);
  const Completion& completion = *started.completion;
  std::vector<TextChunk> chunks;
  while (!reader.poll(chunks)) {
    co_await connection.wait(kNever);
    if (connection.gone() != nullptr) {
      reader.finish();
      co_return;
    }
  }
  reader.finish();
  HttpReply reply = reader.error() ? error_reply(*reader.error())
                                   : json_reply(started.writer->whole(chunks, completion));
  co_await connection.reply(std::move(reply));
}

HttpReply stream_head() {
  HttpReply head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  return head;
}

asio::awaitable<void> answer_stream(HttpConnection& connection, const Started& started) {
  Reader reader(connection, started);
  const Completion& completion = *started.completion;
  AnswerWriter& writer = *started.writer;
  std::vector<TextChunk> chunks;  // used again, as is `events`
  std::string events;
  Clock::time_point next_ping = Clock::now() + kPingInterval;
  for (bool ended = false; !ended;) {
    chunks.clear();
    ended = reader.poll(chunks);
    if (reader.error() && !connection.streaming()) {  // nothing sent yet: the status can tell
      reader.finish();
      HttpReply reply = error_reply(*reader.error());
      co_await connection.reply(std::move(reply));
      co_return;
    }
    for (const TextChunk& chunk : chunks)
      if (!chunk.error && chunk.finish != FinishReason::error)
        writer.append_event(events, chunk, completion);
    if (events.empty() && Clock::now() >= next_ping) events = ": ping\n\n";
    if (ended) {
      if (reader.error())
        writer.append_failure(events, *reader.error());
      else
        writer.append_end(events, completion);
      reader.finish();
    }
    if (!events.empty()) {
      if (!connection.streaming()) connection.begin_stream(stream_head());
      if (co_await connection.write_stream(events, ended) && !chunks.empty()) reader.first_write();
      next_ping = Clock::now() + kPingInterval;
    }
    if (!ended) co_await connection.wait(next_ping);
    if (connection.gone() != nullptr && !ended) {
      reader.finish();
      co_return;
    }
  }
}

}  // namespace

Result<Started> start_call(HttpConnection& connection, CompletionCall call, const char* id_prefix) {
  HttpContext& context = connection.shared();
  const HttpRequest& request = connection.request();
  const ServedModel& model = *context.state.model();
  context.state.note_unknown_fields(call.unknown_fields);
  call.request.id = id_prefix + (call.request_id.empty() ? request.request_id : call.request_id);
  call.request.arrival = request.arrival;
  call.request.tenant = request.tenant;
  if (const auto priority = priority_of_objective(context.state.config(), request.objective))
    call.request.priority = *priority;
  if (const int timeout = context.state.config().request_timeout; timeout > 0)
    call.request.deadline = request.arrival + std::chrono::seconds(timeout);
  // The prompts are not kept: only their ids, and their number, are needed from now on.
  auto prompts = std::exchange(call.request.prompts, {});
  call.request.prompts.resize(prompts.size());
  CompletionRequest submitted = call.request;
  submitted.prompts = std::move(prompts);
  KIVI_ASSIGN_OR_RETURN(std::shared_ptr<Completion> completion,
                        Completion::start(model, std::move(submitted), connection.notifier()));
  return Started{std::move(call), std::move(completion), nullptr, "chat"};
}

asio::awaitable<void> answer(HttpConnection& connection,
                             Result<Started> (*begin)(HttpConnection&)) {
  std::optional<Result<Started>> started = co_await run_by_size(
      connection, [&connection, begin] { return std::optional(begin(connection)); });
  connection.drop_body();
  if (connection.gone() != nullptr) {
    if (started->ok()) (*started)->completion->cancel();
    co_return;
  }
  if (!started->ok()) {
    const Error& error = started->error();
    connection.shared().state.metrics().admission_rejected(error);
    connection.permit().reset();
    HttpReply reply = error_reply(error);
    co_await connection.reply(std::move(reply));
    co_return;
  }
  const std::shared_ptr<Completion> completion = (*started)->completion;
  connection.on_gone([completion] { completion->cancel(); });
  if ((*started)->call.request.streaming)
    co_await answer_stream(connection, **started);
  else
    co_await answer_whole(connection, **started);
  if (connection.gone() != nullptr) completion->cancel();
}

}  // namespace kivi
