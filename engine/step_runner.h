// StepRunner: computes a BatchPlan. ModelRunner is the one of the product (step_input, model,
// sampler on a Backend); tests and the front end's benchmark use runners that invent tokens, so
// that the scheduler, the engine and the servers can be tried without a model.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/batch_plan.h"
#include "kernels/sampling.h"

namespace kivi {

// Results of one planned sequence, in the plan's order.
struct StepResult {
  SampledToken token;                // where `samples`
  std::vector<SampledToken> scored;  // where `scores_prompt`: one a scored row, in order
};

// When the device worked on a step. Begin: the first layer's work, with the step's input in place;
// end: the last token is sampled.
struct StepTimes {
  double idle = 0;  // seconds from the end of the step before to this one's begin
  double busy = 0;  // seconds from begin to end
};

// Gets every row of logits that is about to be sampled or scored: the request's id, the row's
// position in the sequence (the logits say what comes after it) and logits [vocab], on the host and
// only during the call.
using LogitsObserver =
    std::function<void(const std::string& request_id, int position, std::span<const float> logits)>;

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // Enqueues the step. The plan is only read during the call. Engine thread only, both.
  virtual void launch(const BatchPlan& plan) = 0;
  // Is a step still running when launch returns? Then the next one may be launched before this one
  // is collected (two at most), with -1 in `tokens` where this step's token will stand; but not
  // across a step that scores prompts.
  virtual bool asynchronous() const { return false; }
  // Waits for the oldest step that has not been collected; results[i] belongs to its
  // plan.sequences[i]. An error fails every request of the step and nothing else.
  virtual Result<std::vector<StepResult>> collect() = 0;

  // Are times taken of the steps that are launched from now on? (Where the runner has a device.)
  virtual void time_steps(bool) {}
  // Of the step that was collected last; none for the first that is timed.
  virtual std::optional<StepTimes> step_times() const { return std::nullopt; }

  // Of the steps that are launched from now on; an empty one ends it. (Where the runner has
  // logits.)
  virtual void observe_logits(LogitsObserver) {}
};

}  // namespace kivi
