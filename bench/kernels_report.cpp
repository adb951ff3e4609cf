// SPDX-License-Identifier: Apache-2.0
#include "bench/kernels_report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace kivi {

KernelFigures figures_of(const KernelBenchmark& benchmark, const KernelMeasurement& m) {
  KernelFigures f;
  if (m.seconds <= 0) return f;
  const double bytes_per_s = double(m.bytes) / m.seconds, flops_per_s = m.flops / m.seconds;
  f.microseconds = m.seconds * 1e6;
  f.gb_s = bytes_per_s / 1e9;
  f.tflop_s = flops_per_s / 1e12;
  if (benchmark.copy_bytes_per_s > 0) f.copy_share = bytes_per_s / benchmark.copy_bytes_per_s;
  if (benchmark.matrix_flops_per_s > 0) f.matrix_share = flops_per_s / benchmark.matrix_flops_per_s;
  return f;
}

std::string kernels_header(const KernelBenchmark& b) {
  return fmt::format(
      "{} {} on {}\ncopy {:.1f} GB/s (read + written, {} MiB at a time), {} matrix product {}^3 "
      "{:.3f} TFLOP/s, inputs rotate over {} MiB\n\n{:<17} {:<44} {:<17} {:>10} {:>9} {:>8} {:>6} "
      "{:>9} {:>6}\n",
      b.model, b.dtype, b.device, b.copy_bytes_per_s / 1e9, b.copy_bytes >> 20, b.dtype,
      b.matrix_size, b.matrix_flops_per_s / 1e12, b.rotation_bytes >> 20, "op", "shape", "format",
      "us", "MB", "GB/s", "% copy", "TFLOP/s", "% mat");
}

std::string kernels_line(const KernelBenchmark& benchmark, const KernelMeasurement& m) {
  const std::string head = fmt::format("{:<17} {:<44} {:<17} ", m.op, m.shape, m.format);
  if (!m.skipped.empty()) return head + "skipped: " + m.skipped + "\n";
  const KernelFigures f = figures_of(benchmark, m);
  std::string line = head + fmt::format("{:>10.2f} {:>9.2f} {:>8.1f} {:>6.1f}", f.microseconds,
                                        double(m.bytes) / 1e6, f.gb_s, 100 * f.copy_share);
  if (m.flops > 0) line += fmt::format(" {:>9.3f} {:>6.1f}", f.tflop_s, 100 * f.matrix_share);
  return line + "\n";
}

nlohmann::ordered_json kernels_json(const KernelBenchmark& b) {
  nlohmann::ordered_json out;
  out["model"] = b.model;
  out["dtype"] = b.dtype;
  out["device"] = b.device;
  out["copy_gb_s"] = b.copy_bytes_per_s / 1e9;
  out["copy_bytes"] = b.copy_bytes;
  out["matrix_tflop_s"] = b.matrix_flops_per_s / 1e12;
  out["matrix_size"] = b.matrix_size;
  out["rotation_bytes"] = b.rotation_bytes;
  out["rows"] = nlohmann::ordered_json::array();
  for (const KernelMeasurement& m : b.rows) {
    nlohmann::ordered_json row = {{"op", m.op}, {"shape", m.shape}};
    if (!m.format.empty()) row["format"] = m.format;
    if (!m.skipped.empty()) {
      row["skipped"] = m.skipped;
    } else {
      const KernelFigures f = figures_of(b, m);
      row["us"] = f.microseconds;
      row["bytes"] = m.bytes;
      row["gb_s"] = f.gb_s;
      row["copy_share"] = f.copy_share;
      if (m.flops > 0) {
        row["flops"] = m.flops;
        row["tflop_s"] = f.tflop_s;
        row["matrix_share"] = f.matrix_share;
      }
    }
    out["rows"].push_back(std::move(row));
  }
  return out;
}

}  // namespace kivi
