// SPDX-License-Identifier: Apache-2.0
// Times each op of a decoder step on a device, over the shapes of a model's config.json, beside the
// device's copy rate and matrix rate measured in the same run. Written against the Backend contract
// alone, so it says the same of every device. Public header: plain data.
//
// How a time is taken: where the device records graphs, a recorded run of at least 8 launches is
// replayed many times between two marks of the device's clock; elsewhere single calls are. Inputs
// rotate over copies that together are larger than a cache; the figure is the median of several
// samples. Cache contents are made by kv_append itself from random rows.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/config.h"

namespace kivi {

// Sequences of equal length over a cache.
struct CacheCase {
  int sequences = 1;
  int tokens = 1024;  // of each, the one that is being decoded included
  friend bool operator==(const CacheCase&, const CacheCase&) = default;
};

// What is measured; an empty list: all that makes sense on the device.
struct KernelBenchmarkOptions {
  std::vector<std::string> ops;      // of kernel_op_names()
  std::vector<std::string> formats;  // names of --kv-cache-dtype; G and R are EngineConfig's
  std::vector<int> rows;             // t of ops that know no cache
  std::vector<CacheCase> caches;     // for decode attention and append
};

struct KernelMeasurement {
  std::string op;
  std::string shape;   // "[64, 4096] x [12288, 4096]", "(64, 1024)"
  std::string format;  // of the cache or of quantized weights; "": the op knows none
  double seconds = 0;  // of one call
  int64_t bytes = 0;   // bench/kernel_costs.h
  double flops = 0;
  std::string skipped;  // why it was not measured; "": it was
};

struct KernelBenchmark {
  std::string model, device, dtype;  // dtype: of weights
  double copy_bytes_per_s = 0;       // read + written
  int64_t copy_bytes = 0;            // copied at a time
  double matrix_flops_per_s = 0;
  int matrix_size = 0;         // n of the n x n x n product
  int64_t rotation_bytes = 0;  // what inputs rotate over, at least
  std::vector<KernelMeasurement> rows;
};

// In the order of a step.
const std::vector<std::string>& kernel_op_names();

// Told of each measurement as it comes, with what is known so far: all but later rows.
using KernelObserver = std::function<void(const KernelBenchmark&, const KernelMeasurement&)>;

// Of `config` the model's config.json, device, threads, dtype, quantization, G and R count.
// quantization fp8 and int4 are the format of the layers' matrices, not of the head. Errors: the
// config's, the device's; a case that finds no memory is skipped, not an error.
Result<KernelBenchmark> benchmark_kernels(const EngineConfig& config,
                                          const KernelBenchmarkOptions& options,
                                          const KernelObserver& observer);

}  // namespace kivi
