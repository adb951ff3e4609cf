// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/kv_attend_decode_launch.cuh"
#include "tests/cuda/decode_timeline.h"

namespace kivi {
namespace {

constexpr int kLaunches = 32, kSkipped = 8;

using Timed = cudaError_t (*)(const cuda::DecodeLaunch&, const cuda::DecodeGrid&, cudaStream_t);

template <int D>
Timed timed_of(const KvFormat& f) {
  if (f.kind != KvKind::kivi || f.key_bits != 2 || f.value_bits != 2) return nullptr;
  return f.parameter_bits == 8 || f.key_bias ? &cuda::launch_decode_narrow<D, 2, 2, true, true>
                                             : &cuda::launch_decode_narrow<D, 2, 2, false, true>;
}

}  // namespace

bool print_timeline(const std::function<cuda::DecodeArguments(int)>& arguments,
                    const CudaProperties& device, const DecodeWorkspace& workspace,
                    cudaStream_t stream, const cuda::DecodeTuning& tuning) {
  const KvLayout layout = arguments(0).cache.store.layout;
  const Timed launch = layout.shape.head_dim == 128  ? timed_of<128>(layout.format)
                       : layout.shape.head_dim == 64 ? timed_of<64>(layout.format)
                                                     : nullptr;
  cuda::DecodeGrid grid{};
  const cuda::DecodeLaunch first =
      cuda::describe_decode(arguments(0), device, workspace, tuning, grid);
  if (launch == nullptr || grid.wide || grid.heads_tiles > 0) return false;
  const size_t warps = size_t(grid.blocks) * size_t(grid.warps);
  const size_t fields = warps * cuda::kDecodeFields;
  const DeviceMemory times = make_device_memory(kLaunches * fields * sizeof(uint64_t));
  KIVI_CUDA_VERIFY(cudaMemsetAsync(times.get(), 0, kLaunches * fields * sizeof(uint64_t), stream));
  KIVI_CUDA_VERIFY(cuda::decode_attend(arguments(0), cuda::DecodeLaunchKind::plan, device,
                                       workspace, stream, tuning));
  for (int i = 0; i < kLaunches; ++i) {
    cuda::DecodeLaunch a = cuda::describe_decode(arguments(i), device, workspace, tuning, grid);
    a.timeline = reinterpret_cast<uint64_t*>(times.get()) + size_t(i) * fields;
    grid.overlaps = i > 0;
    KIVI_CUDA_VERIFY(launch(a, grid, stream));
  }
  std::vector<uint64_t> host(kLaunches * fields);
  KIVI_CUDA_VERIFY(cudaMemcpyAsync(host.data(), times.get(), host.size() * sizeof(uint64_t),
                                   cudaMemcpyDeviceToHost, stream));
  KIVI_CUDA_VERIFY(cudaStreamSynchronize(stream));

  // Warps without a unit have no time at some places: 0.
  const auto field = [&](int i, size_t warp, int f) {
    return host[size_t(i) * fields + warp * cuda::kDecodeFields + size_t(f)];
  };
  const auto ended = [&](int i) {
    uint64_t last = 0;
    for (size_t w = 0; w < warps; ++w)
      last = std::max(last, field(i, w, int(cuda::DecodePlace::done)));
    return last;
  };
  const char* names[cuda::kDecodePlaces] = {"started",    "planned",  "copied", "previous ended",
                                            "first unit", "computed", "met",    "block merged",
                                            "counted",    "done"};
  std::printf("\n  %d blocks of %d warps, %d stages; us since the launch before ended\n",
              grid.blocks, grid.warps, first.stages);
  std::printf("  %-16s %7s %7s %7s %7s\n", "", "first", "mean", "median", "last");
  for (int f = 0; f < cuda::kDecodePlaces; ++f) {
    double sum = 0, earliest = 0, last = 0, median = 0;
    size_t count = 0;
    for (int i = kSkipped; i < kLaunches; ++i) {
      const uint64_t zero = ended(i - 1);
      std::vector<double> at;
      for (size_t w = 0; w < warps; ++w)
        if (field(i, w, f) != 0) at.push_back((double(field(i, w, f)) - double(zero)) / 1e3);
      if (at.empty()) continue;
      std::sort(at.begin(), at.end());
      for (const double x : at) sum += x;
      count += at.size();
      earliest += at.front(), last += at.back(), median += at[at.size() / 2];
    }
    const double launches = kLaunches - kSkipped;
    std::printf("  %-16s %7.2f %7.2f %7.2f %7.2f\n", names[f], earliest / launches,
                sum / double(std::max<size_t>(count, 1)), median / launches, last / launches);
  }
  const auto counted = [&](const char* name, cuda::DecodeCount of) {
    double cycles = 0, times_counted = 0, most = 0;
    for (int i = kSkipped; i < kLaunches; ++i)
      for (size_t w = 0; w < warps; ++w) {
        cycles += double(field(i, w, cuda::kDecodePlaces + int(of)));
        times_counted += double(field(i, w, cuda::kDecodePlaces + int(of) + 1));
        most = std::max(most, double(field(i, w, cuda::kDecodePlaces + int(of) + 1)));
      }
    std::printf("  %-16s %6.2f a warp, at most %.0f", name,
                times_counted / double(warps) / (kLaunches - kSkipped), most);
    if (cycles > 0) std::printf(", %.0f cycles each", cycles / times_counted);
    std::printf("\n");
  };
  counted("waits", cuda::DecodeCount::waiting);
  counted("pages", cuda::DecodeCount::pages);
  counted("tiles", cuda::DecodeCount::tiles);
  counted("ends of segments", cuda::DecodeCount::ends);
  return true;
}

}  // namespace kivi
