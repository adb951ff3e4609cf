// SPDX-License-Identifier: Apache-2.0
#include "study/divergence.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "study/kv_stats_run.h"

namespace kivi {

namespace {
constexpr double kNotSeen = -HUGE_VAL;
}  // namespace

double kl_divergence(std::span<const float> p_logits, std::span<const float> q_logits) {
  KIVI_VERIFY(p_logits.size() == q_logits.size() && !p_logits.empty());
  const double p_largest = double(std::ranges::max(p_logits));
  const double q_largest = double(std::ranges::max(q_logits));
  double p_sum = 0, q_sum = 0, apart = 0;  // sum of p_i (x_i - y_i), not yet divided by p_sum
  for (size_t i = 0; i < p_logits.size(); ++i) {
    const double x = double(p_logits[i]) - p_largest, y = double(q_logits[i]) - q_largest;
    const double p = std::exp(x);
    p_sum += p;
    q_sum += std::exp(y);
    if (p > 0) apart += p * (x - y);
  }
  return apart / p_sum - std::log(p_sum) + std::log(q_sum);
}

ReferenceLogits::ReferenceLogits(const std::vector<std::vector<int32_t>>& prompts, int vocab)
    : first_row_{0}, vocab_(size_t(vocab)) {
  for (const std::vector<int32_t>& prompt : prompts)
    first_row_.push_back(first_row_.back() + int64_t(prompt.size()) - 1);
  logits_.resize(size_t(rows()) * vocab_);
}

int64_t ReferenceLogits::bytes(const std::vector<std::vector<int32_t>>& prompts, int vocab) {
  int64_t rows = 0;
  for (const std::vector<int32_t>& prompt : prompts) rows += int64_t(prompt.size()) - 1;
  return rows * vocab * int64_t(sizeof(float));
}

std::vector<double> ReferenceLogits::prompt_means(std::span<const double> x) const {
  std::vector<double> means;
  for (size_t i = 0; i + 1 < first_row_.size(); ++i) {
    const auto begin = x.begin() + first_row_[i], end = x.begin() + first_row_[i + 1];
    if (begin != end) means.push_back(std::accumulate(begin, end, 0.0) / double(end - begin));
  }
  return means;
}

LogitsObserver ReferenceLogits::recorder() {
  return [this](const std::string& id, int position, std::span<const float> logits) {
    const int64_t row = row_of(std::stoi(id), position);
    KIVI_VERIFY(row < 0 || logits.size() == vocab_);
    if (row >= 0) std::ranges::copy(logits, logits_.begin() + row * int64_t(vocab_));
  };
}

int64_t ReferenceLogits::row_of(int prompt, int position) const {
  const int64_t row = first_row_[size_t(prompt)] + position;
  return row < first_row_[size_t(prompt) + 1] ? row : -1;
}

std::span<const float> ReferenceLogits::logits(int64_t row) const {
  return std::span(logits_).subspan(size_t(row) * vocab_, vocab_);
}

DivergenceMeter::DivergenceMeter(const ReferenceLogits& reference, int threads)
    : reference_(reference),
      kl_(size_t(reference.rows()), kNotSeen),
      same_(size_t(reference.rows())) {
  KIVI_VERIFY(threads >= 1);
  for (int i = 0; i < threads; ++i)
    threads_.emplace_back([this](const std::stop_token& stop) { work(stop); });
}

LogitsObserver DivergenceMeter::observer() {
  return [this](const std::string& id, int position, std::span<const float> logits) {
    const int64_t row = reference_.row_of(std::stoi(id), position);
    if (row < 0) return;
    Row copy{row, {logits.begin(), logits.end()}};
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_.size() < 4 * threads_.size(); });
    waiting_.push_back(std::move(copy));
    changed_.notify_all();
  };
}

void DivergenceMeter::work(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (changed_.wait(lock, stop, [&] { return !waiting_.empty(); })) {
    const Row row = std::move(waiting_.front());
    waiting_.pop_front();
    ++busy_;
    lock.unlock();
    compare(row);
    lock.lock();
    --busy_;
    changed_.notify_all();
  }
}

void DivergenceMeter::compare(const Row& row) {
  const std::span<const float> expected = reference_.logits(row.row), logits = row.logits;
  const double kl = kl_divergence(expected, logits);
  kl_[size_t(row.row)] = std::isnan(kl) ? HUGE_VAL : kl;  // a row that is no distribution
  same_[size_t(row.row)] = std::ranges::max_element(expected) - expected.begin() ==
                           std::ranges::max_element(logits) - logits.begin();
}

Divergence DivergenceMeter::result() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_.empty() && busy_ == 0; });
  }
  KIVI_VERIFY(!kl_.empty() && std::ranges::count(kl_, kNotSeen) == 0);
  std::vector<double> sorted = kl_;
  std::ranges::sort(sorted);
  const double rows = double(sorted.size());
  return {.kl_mean = std::accumulate(sorted.begin(), sorted.end(), 0.0) / rows,
          .kl_error = standard_error(reference_.prompt_means(kl_)),
          .kl_p99 = sorted[size_t(std::ceil(0.99 * rows)) - 1],
          .top1_agreement = std::accumulate(same_.begin(), same_.end(), 0.0) / rows};
}

}  // namespace kivi
