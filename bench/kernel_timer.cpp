// SPDX-License-Identifier: Apache-2.0
#include "bench/kernel_timer.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace kivi {
namespace {

constexpr int kLaunchesMin = 8;  // in a recording
constexpr int kSamples = 7;
constexpr double kSampleSeconds = 4e-3;  // a thousand times the clock's resolution
constexpr int kTimesMax = 500;
constexpr double kSlowSeconds = 10e-3;  // an op that takes this long is recorded alone

double median(std::array<double, kSamples> samples) {
  std::sort(samples.begin(), samples.end());
  return samples[kSamples / 2];
}

int times_for(double seconds_once) {
  return int(
      std::clamp(std::ceil(kSampleSeconds / std::max(seconds_once, 1e-9)), 1.0, double(kTimesMax)));
}

}  // namespace

double KernelTimer::sample(const std::function<void()>& work, int times) {
  backend_.mark(0);
  for (int i = 0; i < times; ++i) work();
  backend_.mark(1);
  return backend_.seconds_between(0, 1);
}

double KernelTimer::seconds(int copies, const std::function<void(int copy)>& op) {
  const bool records = backend_.asynchronous();
  int launches = 1;
  if (records) {
    op(0);  // code is loaded, products are chosen
    const bool slow = sample([&] { op(0); }, 1) > kSlowSeconds;
    launches = slow ? 1 : std::max(copies, kLaunchesMin);
  }
  const uint64_t key = ++key_;
  const std::function<void()> run = [&] {
    if (!records) return op(next_ = (next_ + 1) % copies);
    backend_.run_recorded(key, [&] {
      for (int i = 0; i < launches; ++i) op(i % copies);
    });
  };
  run();  // as it is: code is loaded, products are chosen
  run();  // recorded
  const int times = times_for(sample(run, 1));
  std::array<double, kSamples> samples;
  for (double& s : samples) s = sample(run, times) / (double(times) * launches);
  backend_.synchronize();
  return median(samples);
}

double KernelTimer::seconds_unrecorded(const std::function<void(int calls)>& calls) {
  calls(2);
  const int times = std::max(4, times_for(sample([&] { calls(1); }, 1)));
  std::array<double, kSamples> samples;
  for (double& s : samples) s = sample([&] { calls(times); }, 1) / times;
  return median(samples);
}

}  // namespace kivi
