// SPDX-License-Identifier: Apache-2.0
// Generation is one Generate, Complete or Embed call. It connects the reactions of gRPC, the
// executor and a Completion.
//
// It is an actor. Each event (a reaction of gRPC, tokens, an Abort, a timer) is noted under its
// mutex and schedules a turn. Turns run on the executor, one at a time. So the state of a turn
// needs no lock, and no thread of gRPC or of the engine ever works or waits for a call.
//
// A slow reader holds little memory. While a write is in flight, the Completion is not polled. New
// tokens stay in its TokenStreams and go out together in the next message.
#pragma once

#include <grpcpp/support/status.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/serving/completion.h"
#include "kivi/v1/kivi.pb.h"
#include "server/grpc/grpc_convert.h"
#include "server/grpc/grpc_core.h"
#include "server/grpc/request_message.h"

namespace kivi {

// What the headers of a call say.
struct CallInfo {
  const char* method = "";  // "/kivi.v1.Kivi/Generate"
  std::string request_id;
  std::string tenant;                  // tenant.h
  std::string objective, fairness_id;  // gateway.h; "" if absent or not printable
  TraceContext trace;
  Clock::time_point arrival = Clock::now();
  std::optional<Clock::time_point> deadline;
};

// Counts the end of the call, logs it with --enable-log-requests, and hands its span to the
// exporter. `asked`, `figures`: of a call that had sequences. Any thread.
void call_handled(GrpcCore& core, const CallInfo& call, grpc::StatusCode code,
                  std::optional<RequestAsked> asked = {},
                  std::optional<RequestFigures> figures = {});

// Sets the id of a call whose message has arrived: `wanted` (a field of the message), else the id
// of the headers, else a new one. Error invalid if `wanted` is neither empty nor usable.
Status adopt_request_id(CallInfo& call, const std::string& wanted);

// The statuses of calls whose message did not arrive whole, or not in time, or is too much beside
// the bodies and messages of others (which is counted).
grpc::Status unreadable_status(const char* method);
grpc::Status late_message_status(const ServerConfig& config);
grpc::Status over_budget_status(GrpcCore& core);
// Parses the message of a call of `method`. Returns why the call must end, or OK.
grpc::Status parse_message(GrpcCore& core, const char* method, RequestMessage& message);

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  virtual ~Generation() = default;

  // Ends the Completion early. Its events still go out. Any thread.
  void abort();

 protected:
  // `message`, the request, lives until the call is done. It is filled in by the first turn, and
  // emptied behind the last write() or with finish().
  Generation(GrpcCore& core, CallInfo call, google::protobuf::Message& message, Delivery delivery);

  // Any thread, once a shared_ptr owns the object. begin() or unreadable() ends the read into
  // incoming(). late() has no effect after begin().
  grpc::ByteBuffer* incoming() { return request_message_.incoming(); }
  void begin();
  void unreadable();
  void late();
  void written(bool ok);  // the write that write() started is done
  void client_gone();     // cancelled, disconnected, or past its deadline
  void done();            // the last reaction

  const CallInfo& call() const { return call_; }
  const ServedModel& model() const { return *model_; }

 private:
  // What has happened since the last turn.
  struct Events {
    bool begun = false, unreadable = false, late = false, over_budget = false, ready = false,
         written = false, write_failed = false, gone = false, aborted = false, timer = false;
    bool any() const {
      return begun || unreadable || late || over_budget || ready || written || write_failed ||
             gone || aborted || timer;
    }
  };

  // --- a front end's side of it; called in a turn ------------------------------------------------
  // The id that the request asks for; "" = none.
  virtual const std::string& wanted_id() const = 0;
  // The request as the engine takes it. `id`, `deadline` and `arrival` are set later.
  virtual Result<CompletionRequest> read(const ServedModel& model) const = 0;
  // Sends `chunks`, or keeps them for the last call. `usage`: null but for the last ones, which are
  // sent. Returns the bytes of the write that is in flight now, and written() follows; 0: there is
  // none.
  virtual size_t write(std::vector<TextChunk>& chunks, const Usage* usage) = 0;
  // Ends the call. No write is in flight.
  virtual void finish(grpc::Status status) = 0;
  // Makes gRPC drop the call; client_gone() and written(false) follow.
  virtual void drop() = 0;

  void note(bool Events::*what);
  void drop_message();
  void turn();
  void run(const Events& events);
  void start();
  void pump();
  void watch_writer();
  void end_for_gone_client();
  void count_usage();
  void conclude(grpc::Status status);

  GrpcCore& core_;
  CallInfo call_;  // of the turn, once begin() or unreadable() was called
  const Delivery delivery_;
  RequestMessage request_message_;  // of the read until begin(), then of the turn

  std::mutex mutex_;  // guards the two below
  Events events_;
  bool scheduled_ = false;  // a turn is queued or running

  // Of the turn.
  const ServedModel* model_ = nullptr;
  std::shared_ptr<Completion> completion_;
  RateLimiter::Permit permit_;
  std::optional<RequestAsked> asked_;
  std::optional<RequestMetrics> metrics_;
  std::vector<TextChunk> chunks_;
  bool arrived_ = false;   // begin() was seen, and the message has not been dropped
  bool pools_ = false;     // the request asks for embeddings
  bool ended_ = false;     // the last chunks have been written, or are in flight
  bool finished_ = false;  // finish() was called
  bool writing_ = false;
  bool gone_ = false;
  bool dropped_ = false;  // a slow reader
  bool timer_armed_ = false;
  Clock::time_point write_started_;
  std::chrono::seconds write_limit_{};  // of the write in flight
};

}  // namespace kivi
