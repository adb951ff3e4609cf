// SPDX-License-Identifier: Apache-2.0
// StepRunner computes a BatchPlan. ModelRunner is the real one: step input, model and sampler on a
// Backend. Tests and the front end's benchmark use runners that invent tokens, so that the
// scheduler, the engine and the servers can run without a model.
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
  SampledToken token;                // set if the plan says `samples`
  std::vector<SampledToken> scored;  // if `scores_prompt`: one for each scored row, in order
  std::vector<float> hidden;         // [n], if `hidden`: the sum of these rows' final hidden states
};

// When the device worked on a step. The step begins with the first layer's work, after its input
// has arrived. It ends when the last token is sampled.
struct StepTimes {
  double idle = 0;  // seconds from the end of the step before to this one's begin
  double busy = 0;  // seconds from begin to end
};

// Receives every row of logits that is about to be sampled or scored: the request's id, the row's
// position in the sequence (the logits predict the token after it), and logits [vocab]. The logits
// are host memory and valid only during the call.
using LogitsObserver =
    std::function<void(const std::string& request_id, int position, std::span<const float> logits)>;

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // Enqueues copies between the store and the host's pages as one batch, in order after the batches
  // before it. It begins after the steps that were launched before it. It runs beside later steps,
  // except those that must wait for it (BatchPlan::after_transfers). Not called for an engine
  // without pages on the host. Engine thread.
  virtual void transfer(std::span<const KvTransfer>) {}
  // Returns the number of batches that are done. Does not wait.
  virtual uint64_t transfers_done() { return 0; }
  // Returns the seconds for which batches were copied, of all those that the last call of
  // transfers_done() counted; 0: not known.
  virtual double transfer_seconds() const { return 0; }

  // Enqueues the step up to its logits. The plan is read only during the call. Engine thread.
  virtual void launch(const BatchPlan& plan) = 0;
  // Enqueues what chooses the tokens of the step that was launched last. Called once after each
  // launch, with the same plan. If a sequence's token depends on the ids of the step before, that
  // step must be collected first. A token chosen for a sequence that already has it, or has ended,
  // means nothing. Engine thread.
  virtual void sample(const BatchPlan& plan) = 0;
  // Returns true if a step may still run when `launch` returns. Then the next step may be launched
  // before this one is collected, with -1 in `tokens` for this step's token. At most two steps may
  // run. A step that scores prompts or sums hidden states must be collected first.
  virtual bool asynchronous() const { return false; }
  // Waits for the oldest step that has not been collected. results[i] belongs to plan.sequences[i].
  // An error fails the requests of this step only. Engine thread.
  virtual Result<std::vector<StepResult>> collect() = 0;

  // Turns device timing on or off for steps launched after this call. Has no effect without a
  // device.
  virtual void time_steps(bool) {}
  // Returns the times of the step collected last. The first timed step has none.
  virtual std::optional<StepTimes> step_times() const { return std::nullopt; }

  // Shows the logits of every later step to `observer`. Pass an empty function to stop.
  virtual void observe_logits(LogitsObserver) {}
};

}  // namespace kivi
