// SPDX-License-Identifier: Apache-2.0
// When requests are due: a schedule that is known before the first of them is sent.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace kivi::load {

enum class ArrivalKind { poisson, constant, burst, trace };

// The last request is due within this of the first; more is a slip, and no clock's time.
inline constexpr double kDueSecondsMax = 1e9;

// Seconds since the run's start, ascending, `count` of them, the first at 0.
// poisson: gaps are exponential with mean 1 / rate. constant: gaps of 1 / rate. burst: `burst_size`
// at once, every burst_size / rate seconds. rate > 0, requests a second; infinity: all at 0.
std::vector<double> arrival_times(ArrivalKind kind, double rate, int burst_size, int count,
                                  uint64_t seed);

// Times of a trace: one number a line, seconds, ascending; empty lines and lines that begin with #
// are left out. They are moved so that the first is 0. Error: names the line, which is no number,
// less than the one before, or more than kDueSecondsMax after the first.
Result<std::vector<double>> parse_trace(const std::string& text, const std::string& file);

}  // namespace kivi::load
