// SPDX-License-Identifier: Apache-2.0
#include "bench/client/arrivals.h"

#include <fmt/format.h>

#include <cmath>

#include "bench/client/random.h"
#include "bench/client/streams.h"
#include "bench/client/text.h"

namespace kivi::load {

std::vector<double> arrival_times(ArrivalKind kind, double rate, int burst_size, int count,
                                  uint64_t seed) {
  Random random(seed, kArrivalStream);
  std::vector<double> times(size_t(count), 0.0);
  if (std::isinf(rate)) return times;
  for (size_t i = 1; i < times.size(); ++i) {
    const size_t of_burst = i % size_t(burst_size);
    if (kind == ArrivalKind::burst)
      times[i] = double(i - of_burst) / rate;
    else if (kind == ArrivalKind::constant)
      times[i] = double(i) / rate;
    else
      times[i] = times[i - 1] + random.exponential() / rate;
  }
  return times;
}

Result<std::vector<double>> parse_trace(const std::string& text, const std::string& file) {
  std::vector<double> times;
  int line = 0;
  for (std::string part : split(text, '\n')) {
    ++line;
    while (!part.empty() && (part.back() == '\r' || part.back() == ' ')) part.pop_back();
    if (part.empty() || part.front() == '#') continue;
    const auto seconds = parse_number<double>(part);
    if (!seconds || (!times.empty() && *seconds < times.back()))
      return Error{ErrorCode::invalid,
                   fmt::format("{}:{}: \"{}\", expected seconds, not less than the line before",
                               file, line, part.substr(0, 80))};
    if (!times.empty() && *seconds - times.front() > kDueSecondsMax)
      return Error{ErrorCode::invalid,
                   fmt::format("{}:{}: \"{}\", expected at most {:g} seconds after the first", file,
                               line, part.substr(0, 80), kDueSecondsMax)};
    times.push_back(*seconds);
  }
  if (times.empty())
    return Error{ErrorCode::invalid, fmt::format("{}: expected a number of seconds a line", file)};
  const double first = times.front();
  for (double& time : times) time -= first;
  return times;
}

}  // namespace kivi::load
