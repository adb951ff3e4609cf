// SPDX-License-Identifier: Apache-2.0
// Measures how far the next-token distributions of a cache format are from those of the fp16 cache,
// over the whole vocabulary: Kullback-Leibler divergence, and how often the likeliest token is
// equal.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"

namespace kivi {

// Returns KL(p || q) = sum_i p_i log(p_i / q_i) in nats. p and q are the softmaxes of two rows of
// logits of the same length. A token whose logit in p is -infinity adds nothing. Sums are in
// double.
double kl_divergence(std::span<const float> p_logits, std::span<const float> q_logits);

// Keeps the logits of the prompts that score_prompts ran: vocab floats for each predicted token.
class ReferenceLogits {
 public:
  ReferenceLogits(const std::vector<std::vector<int32_t>>& prompts, int vocab);

  static int64_t bytes(const std::vector<std::vector<int32_t>>& prompts, int vocab);

  // Returns a function for Engine::on_logits while score_prompts runs the same prompts. This object
  // must outlive it.
  LogitsObserver recorder();

  // The means of a number of each row over the rows of each prompt.
  std::vector<double> prompt_means(std::span<const double> x) const;

  int64_t rows() const { return first_row_.back(); }
  // Returns the row that predicts token `position + 1` of prompt `prompt`, or -1 if there is none.
  int64_t row_of(int prompt, int position) const;
  std::span<const float> logits(int64_t row) const;  // [vocab]

 private:
  std::vector<int64_t> first_row_;  // of each prompt, and their number
  size_t vocab_;
  std::vector<float> logits_;  // [rows, vocab]
};

struct Divergence {
  double kl_mean = 0;   // nats
  double kl_error = 0;  // standard error of kl_mean, from the prompts' means; 0 for one prompt
  double kl_p99 = 0;    // of the rows, nearest rank
  double top1_agreement = 0;  // share of rows whose most likely token is the reference's
};

// Compares the rows of another engine with a reference. The reference must outlive it. A row of
// 50,000 logits takes a millisecond, longer than a step of a small model on a GPU, so rows are
// compared by threads of their own.
class DivergenceMeter {
 public:
  // threads: at least 1.
  explicit DivergenceMeter(const ReferenceLogits& reference,
                           int threads = int(std::max(1u, std::thread::hardware_concurrency())));

  // As ReferenceLogits::recorder. It waits while many rows are not yet compared.
  LogitsObserver observer();
  // Waits until all rows are compared. All must have been seen.
  Divergence result();

 private:
  struct Row {
    int64_t row;
    std::vector<float> logits;
  };
  void work(const std::stop_token& stop);
  void compare(const Row& row);

  const ReferenceLogits& reference_;
  std::vector<double> kl_;     // of each row
  std::vector<uint8_t> same_;  // is the most likely token the same?

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Row> waiting_;            // guarded by mutex_
  size_t busy_ = 0;                    // rows that threads compare; guarded by mutex_
  std::vector<std::jthread> threads_;  // last: they use what is above
};

}  // namespace kivi
