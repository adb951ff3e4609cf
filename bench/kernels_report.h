// SPDX-License-Identifier: Apache-2.0
// From a kernel benchmark to its table and JSON. Pure functions.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "bench/kernel_benchmark.h"

namespace kivi {

// What one measurement comes to beside the device's rates. Shares are in [0, 1] but for what a
// cache serves; 0 where the op multiplies no matrices.
struct KernelFigures {
  double microseconds = 0;
  double gb_s = 0;          // 1e9 bytes
  double tflop_s = 0;       // 1e12 operations
  double copy_share = 0;    // of the copy rate
  double matrix_share = 0;  // of the matrix rate
};
KernelFigures figures_of(const KernelBenchmark& benchmark, const KernelMeasurement& m);

// "device: copy ... GB/s, ..." and the column heads.
std::string kernels_header(const KernelBenchmark& benchmark);
// One line of the table.
std::string kernels_line(const KernelBenchmark& benchmark, const KernelMeasurement& m);
nlohmann::ordered_json kernels_json(const KernelBenchmark& benchmark);

}  // namespace kivi
