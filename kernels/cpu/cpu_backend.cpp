// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpu_backend.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "base/verify.h"

namespace kivi {
namespace {

constexpr size_t kAlignment = 256;  // bytes; what Backend::allocate promises

// The value of the first line of `path` that starts with `key`, without blanks around it.
std::string value_of(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(" \t", line.find(':') + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

int machine_cores() { return std::max(1, int(std::thread::hardware_concurrency())); }

}  // namespace

CpuBackend::CpuBackend(int threads)
    : pool_(threads > 0 ? threads : machine_cores()), scratch_(size_t(pool_.threads())) {}

DeviceInfo CpuBackend::info() const {
  const std::string model = value_of("/proc/cpuinfo", "model name");
  const std::string available = value_of("/proc/meminfo", "MemAvailable");  // "123456 kB"
  DeviceInfo info;
  info.name = fmt::format("{} ({} threads)", model.empty() ? "CPU" : model, pool_.threads());
  info.kind = "cpu";
  info.memory_total = int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  info.memory_free =
      available.empty() ? info.memory_total : std::strtoll(available.c_str(), nullptr, 10) * 1024;
  return info;
}

void CpuBackend::upload(void* device, const void* source, size_t bytes) {
  if (bytes > 0) std::memcpy(device, source, bytes);
}

void CpuBackend::download(void* target, const void* device, size_t bytes) {
  if (bytes > 0) std::memcpy(target, device, bytes);
}

void CpuBackend::fill_zero(void* device, size_t bytes) {
  if (bytes > 0) std::memset(device, 0, bytes);
}

void CpuBackend::copy(void* to, const void* from, size_t bytes) {
  constexpr size_t kPiece = 1 << 20;
  const auto pieces = int64_t((bytes + kPiece - 1) / kPiece);
  pool_.parallel_for(pieces, int64_t(bytes), [&](int64_t i, int) {
    const size_t begin = size_t(i) * kPiece;
    std::memcpy(static_cast<std::byte*>(to) + begin, static_cast<const std::byte*>(from) + begin,
                std::min(kPiece, bytes - begin));
  });
}

Result<HostMemory> CpuBackend::allocate_host(size_t bytes) {
  KIVI_ASSIGN_OR_RETURN(std::byte * data, do_allocate(bytes));
  return HostMemory(data, [](std::byte* memory) { std::free(memory); });
}

void CpuBackend::mark(int index) { marks_.at(size_t(index)) = std::chrono::steady_clock::now(); }

double CpuBackend::seconds_between(int from, int to) {
  return std::chrono::duration<double>(marks_.at(size_t(to)) - marks_.at(size_t(from))).count();
}

Result<std::byte*> CpuBackend::do_allocate(size_t bytes) {
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* data = rounded < bytes ? nullptr : std::aligned_alloc(kAlignment, rounded);
  if (data == nullptr)
    return Error{ErrorCode::resource_exhausted, "the system has no such memory", ""};
  return static_cast<std::byte*>(data);
}

float* CpuBackend::operand_row(const Operand& out, int64_t i, int worker) {
  return out.quantized() ? scratch_[size_t(worker)].floats(size_t(out.columns()))
                         : out.rows.row<float>(i);
}

void CpuBackend::finish_row(const Operand& out, int64_t i, const float* y) {
  const int64_t k = out.columns();
  if (out.quantized()) quantize_e4m3_row({y, size_t(k)}, out.codes + i * k, out.scales[i]);
}

void CpuBackend::do_free(std::byte* data, size_t) { std::free(data); }

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  return std::make_unique<CpuBackend>(threads);
}

}  // namespace kivi
