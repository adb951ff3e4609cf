// SPDX-License-Identifier: Apache-2.0
// kernels_bench: decode attention over formats, shapes and tunings that `kivi bench kernels` does
// not name.
//
//   kernels_bench [--only FORMAT] [--shape TEXT] [--tunings LIST] [--heads-apart] [--sweep]
//                 [--mixed] [--timeline] [--shared]
//
// Prints, for each shape and format, microseconds a launch, gigabytes a second and the percentage
// of the copy rate measured in the same run. --only and --shape keep the format of this name and
// the shapes whose name holds TEXT, such as "mistral-7b (8, 4096)"; either may be several,
// separated by ";". --tunings prints microseconds and percentage for each of several tunings
// instead: WARPSxSTAGESxTILE,..., with the fields of DecodeTuning, 0 for a default.
// --heads-apart sets DecodeTuning::heads_apart. With --sweep, it prints BLOCKSxWARPSxSTAGES:PERCENT
// for many tunings.
// --mixed gives the sequences lengths from a third of the shape's to all of it.
// --shared prints, for samples of one prompt, microseconds a launch where each sample has a copy of
// the prompt's pages, where the samples have the same pages but read them apart, and where shared
// pages are read once for all (cascade); and whether the engine would do so.
// --timeline also prints where the time goes (decode_timeline.h). Inputs are random and rotate over
// copies larger than the L2 cache. A time is the median over replays of a CUDA graph of many
// launches, divided by their number. Bytes are those that the kernel must read of the store: whole
// 64-token units, 16-bit rows, the step's own rows.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/kv_attend_decode.h"
#include "tests/cuda/decode_timeline.h"

namespace kivi {
namespace {

constexpr size_t kRotationBytes = 800 << 20;  // many times the L2 cache
constexpr int kReplays = 7;
constexpr int kLayers = 32;  // of a model: launches for which one plan is made

__device__ uint32_t mix(uint64_t x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull, x ^= x >> 33;
  return uint32_t(x);
}
// Two halves of either sign between 0.25 and 2.
__device__ uint32_t random_rows(uint32_t r) {
  const uint32_t exponents = ((13 + (r >> 26) % 3) << 10) | ((13 + (r >> 28) % 3) << 26);
  return (r & 0x83ff83ffu) | exponents;
}
__global__ void fill_rows(uint32_t* words, int64_t count) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x)
    words[i] = random_rows(mix(uint64_t(i) + 1));
}
__global__ void fill_pages(uint32_t* words, int64_t count, KvLayout layout) {
  const int kp = layout.key_parameters_offset() / 4, vc = layout.value_codes_offset() / 4;
  const int vp = layout.value_parameters_offset() / 4, block = layout.block_bytes() / 4;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) {
    const uint32_t r = mix(uint64_t(i) + 7);
    const int at = int(i % block);
    uint32_t word = r;
    if (layout.format.kind == KvKind::f16) word = random_rows(r);
    if (layout.format.kind == KvKind::f8) word = (r & 0x8f8f8f8fu) | 0x30303030u;
    // Parameters: scales and minima alternate by planes; both are small numbers of one sign here.
    if (layout.format.kind == KvKind::kivi && ((at >= kp && at < vc) || at >= vp))
      word = layout.format.parameter_bits == 8 ? (r & 0x07070707u) | 0x68686868u
                                               : (r & 0x01ff01ffu) | 0x34003400u;
    words[i] = word;
  }
}

struct ShapeCase {
  const char* name;
  int kv_heads, ratio, head_dim, sequences, tokens;
};
// Samples, tokens of the prompt, and tokens of each sample behind it.
struct SharedCase {
  int samples, prompt, rest;
};
enum class Sharing { copies, shared, cascade };
struct FormatCase {
  const char* name;
  KvFormat format;
};
double median_us(cudaStream_t stream, int launches, const std::function<void(int)>& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  launch(0);
  KIVI_CUDA_VERIFY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) launch(i);
  KIVI_CUDA_VERIFY(cudaStreamEndCapture(stream, &graph));
  KIVI_CUDA_VERIFY(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  KIVI_CUDA_VERIFY(cudaEventCreate(&begin));
  KIVI_CUDA_VERIFY(cudaEventCreate(&end));
  std::vector<float> times;
  KIVI_CUDA_VERIFY(cudaGraphLaunch(exec, stream));
  for (int i = 0; i < kReplays; ++i) {
    KIVI_CUDA_VERIFY(cudaEventRecord(begin, stream));
    KIVI_CUDA_VERIFY(cudaGraphLaunch(exec, stream));
    KIVI_CUDA_VERIFY(cudaEventRecord(end, stream));
    KIVI_CUDA_VERIFY(cudaEventSynchronize(end));
    float ms = 0;
    KIVI_CUDA_VERIFY(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms);
  }
  KIVI_CUDA_VERIFY(cudaEventDestroy(begin));
  KIVI_CUDA_VERIFY(cudaEventDestroy(end));
  KIVI_CUDA_VERIFY(cudaGraphExecDestroy(exec));
  KIVI_CUDA_VERIFY(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1000.0 / launches;
}

// Bytes one launch reads of the store for so many sequences of a length (README.md of kernels/cuda
// counts the same way).
double bytes_of(const KvLayout& layout, int sequences, int past) {
  const int d = layout.shape.head_dim, row = 2 * d;
  double bytes = 2 * row;  // the step's own token
  if (layout.format.kind == KvKind::f16) {
    bytes += 2.0 * past * row;
  } else {
    const int values = values_paged(layout.format, past);
    const int keys = keys_paged(layout.format, past);
    const double units = (values + 63) / 64;
    bytes += units * layout.block_bytes() * 64 / layout.page_tokens();
    bytes += double(past - values) * row + double(past - keys) * row;
    if (keys > values)
      bytes += double(keys - values) * d * layout.format.key_bits / 8 +
               double((keys - values + 15) / 16) * layout.parameter_pair_bytes() * d;
  }
  return bytes * sequences * layout.shape.heads;
}

class StoreBench {
 public:
  // `prompt`: tokens that all sequences share. mixed: they have different lengths.
  StoreBench(CudaBackend& backend, const ShapeCase& shape, const KvFormat& format,
             Sharing sharing = Sharing::copies, int prompt = 0, bool mixed = false)
      : backend_(backend), shape_(shape), stream_(backend.stream()) {
    KvLayout layout{format, {1, shape.kv_heads, shape.head_dim}};
    const int pages_each = shape.tokens / layout.page_tokens() + 1;
    const int64_t pages = int64_t(pages_each) * shape.sequences;
    const int64_t layer_bytes = layout.page_bytes() * pages + layout.slot_bytes() * shape.sequences;
    layers_ = int(std::clamp<int64_t>(int64_t(kRotationBytes) / layer_bytes + 1, 1, 64));
    // Much less of them is read, and the plans of groups count.
    if (prompt > 0) layers_ = std::max(layers_, 8), launches_ = kLayers;
    layout.shape.layers = layers_;
    view_.layout = layout;
    view_.page_count = pages;
    view_.slot_count = shape.sequences;
    const int64_t page_bytes = layout.page_bytes() * pages;
    const int64_t slot_bytes = layout.slot_bytes() * shape.sequences;
    pages_ = make_device_memory(size_t(page_bytes));
    slots_ = make_device_memory(size_t(std::max<int64_t>(slot_bytes, 256)));
    view_.pages = pages_.get();
    view_.slots = slots_.get();
    fill_pages<<<2048, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(view_.pages), page_bytes / 4,
                                          layout);
    fill_rows<<<2048, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(view_.slots), slot_bytes / 4);
    std::vector<int32_t> table(static_cast<size_t>(pages));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(5));
    const int shared_pages =
        std::min(prompt, values_paged(format, shape.tokens - 1)) / layout.page_tokens();
    if (sharing != Sharing::copies)
      for (int i = 1; i < shape.sequences; ++i)
        std::copy_n(table.begin(), shared_pages, table.begin() + i * pages_each);
    group_ = {.pages = shared_pages, .member_count = shape.sequences};
    cascades_ = sharing == Sharing::cascade;
    std::vector<int32_t> members(size_t(shape.sequences));
    std::iota(members.begin(), members.end(), 0);
    group_memory_ = make_device_memory(sizeof group_);
    members_ = make_device_memory(members.size() * 4);
    backend.upload(group_memory_.get(), &group_, sizeof group_);
    backend.upload(members_.get(), members.data(), members.size() * 4);
    std::vector<StepSequence> sequences;
    std::mt19937 random(7);
    for (int i = 0; i < shape.sequences; ++i) {
      const int least = mixed ? shape.tokens / 3 : shape.tokens;
      const int past = least - 1 + int(random() % uint32_t(shape.tokens - least + 1));
      bytes_ += bytes_of(view_.layout, 1, past);
      sequences.push_back({.row_begin = i,
                           .row_count = 1,
                           .past = past,
                           .slot = i,
                           .pages_begin = i * pages_each,
                           .pages_count = pages_each,
                           .shared_pages = cascades_ ? shared_pages : 0});
    }
    table_ = make_device_memory(table.size() * 4);
    sequences_ = make_device_memory(sequences.size() * sizeof(StepSequence));
    backend.upload(table_.get(), table.data(), table.size() * 4);
    backend.upload(sequences_.get(), sequences.data(), sequences.size() * sizeof(StepSequence));
    const int64_t d = shape.head_dim, heads = shape.kv_heads, rows = shape.sequences;
    q_ = make_device_memory(size_t(rows * heads * shape.ratio * d * 2));
    out_ = make_device_memory(size_t(rows * heads * shape.ratio * d * 2));
    kv_ = make_device_memory(size_t(rows * 2 * heads * d * 2));
    fill_rows<<<256, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(q_.get()),
                                        rows * heads * shape.ratio * d / 2);
    fill_rows<<<256, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(kv_.get()), rows * heads * d);
    KIVI_CUDA_VERIFY(cudaGetLastError());
  }

  double bytes() const { return bytes_; }

  // Of a launch upon layer `layer`, modulo the layers that there are.
  cuda::DecodeArguments arguments(int layer) const {
    const int64_t d = shape_.head_dim;
    cuda::DecodeArguments a;
    a.q = reinterpret_cast<const __half*>(q_.get());
    a.kv = reinterpret_cast<const __half*>(kv_.get());
    a.out = out_.get();
    a.q_stride = a.out_stride = shape_.kv_heads * shape_.ratio * d;
    a.kv_stride = 2 * shape_.kv_heads * d;
    a.cache.store = view_;
    a.cache.sequences = reinterpret_cast<const StepSequence*>(sequences_.get());
    a.cache.page_table = reinterpret_cast<const int32_t*>(table_.get());
    a.sequence_count = shape_.sequences;
    a.heads_q = shape_.kv_heads * shape_.ratio;
    a.scale_log2 = 1.4427f / std::sqrt(float(d));
    a.layer = layer % layers_;
    a.groups = reinterpret_cast<const StepGroup*>(group_memory_.get());
    a.group_members = reinterpret_cast<const int32_t*>(members_.get());
    a.group_count = cascades_ ? 1 : 0;
    a.whole_rests = cascades_ && whole_rests_;
    return a;
  }

  double attend_us(const DecodeWorkspace& workspace, const cuda::DecodeTuning& tuning) const {
    return median_us(stream_, std::max(layers_, launches_), [&](int i) {
      const cuda::DecodeArguments a = arguments(i);
      const auto launch = [&](cuda::DecodeLaunchKind kind) {
        KIVI_CUDA_VERIFY(
            cuda::decode_attend(a, kind, backend_.properties(), workspace, stream_, tuning));
      };
      const bool first = i % kLayers == 0;
      if (first) launch(cuda::DecodeLaunchKind::plan);
      launch(first ? cuda::DecodeLaunchKind::first : cuda::DecodeLaunchKind::next);
    });
  }

  // Whether the engine would form the group. `kept`: what the backend says of it.
  bool keeps_group(KeptGroups& kept) const {
    std::vector<StepGroup> groups = {group_};
    const int own = view_.layout.pages_for(shape_.tokens) - group_.pages;
    const int tokens =
        shape_.tokens - 1 - view_.layout.format.sinks - group_.pages * view_.layout.page_tokens();
    kept = backend_.keep_groups(view_.layout, shape_.kv_heads * shape_.ratio,
                                {.pages = own * group_.member_count, .tokens = tokens}, groups);
    return !groups.empty();
  }
  // Whether launches deal out whole rests, whatever the backend would say.
  void set_whole_rests(bool whole) { whole_rests_ = whole; }

 private:
  CudaBackend& backend_;
  ShapeCase shape_;
  cudaStream_t stream_;
  int layers_ = 1;
  int launches_ = 8;  // at least
  double bytes_ = 0;  // that a launch reads of the store
  KvView view_;
  DeviceMemory pages_, slots_, table_, sequences_, q_, out_, kv_;
  StepGroup group_;
  bool cascades_ = false, whole_rests_ = false;
  DeviceMemory group_memory_, members_;
};

// Device-to-device copy, 2 GiB: bytes read and written a second. Also brings the clocks up.
double copy_gb_s(cudaStream_t stream) {
  const size_t bytes = size_t(2) << 30;
  DeviceMemory from = make_device_memory(bytes), to = make_device_memory(bytes);
  fill_rows<<<2048, 256, 0, stream>>>(reinterpret_cast<uint32_t*>(from.get()), int64_t(bytes / 4));
  cudaEvent_t begin, end;
  KIVI_CUDA_VERIFY(cudaEventCreate(&begin));
  KIVI_CUDA_VERIFY(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 200; ++i) {
    KIVI_CUDA_VERIFY(cudaEventRecord(begin, stream));
    KIVI_CUDA_VERIFY(
        cudaMemcpyAsync(to.get(), from.get(), bytes, cudaMemcpyDeviceToDevice, stream));
    KIVI_CUDA_VERIFY(cudaEventRecord(end, stream));
    KIVI_CUDA_VERIFY(cudaEventSynchronize(end));
    float ms = 0;
    KIVI_CUDA_VERIFY(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 100) times.push_back(ms);
  }
  KIVI_CUDA_VERIFY(cudaEventDestroy(begin));
  KIVI_CUDA_VERIFY(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return 2.0 * double(bytes) / times[times.size() / 2] / 1e6;
}

// KV heads, query heads a KV head, head size.
const ShapeCase kModels[] = {
    {"llama-2-7b", 32, 1, 128, 0, 0}, {"mistral-7b", 8, 4, 128, 0, 0},
    {"qwen2.5-7b", 4, 7, 128, 0, 0},  {"llama-3-70b", 8, 8, 128, 0, 0},
    {"falcon-7b", 1, 71, 64, 0, 0},   {"llama-3.2-1b", 8, 4, 64, 0, 0},
    {"smollm2-135m", 3, 3, 64, 0, 0},
};
const SharedCase kShared[] = {{64, 2048, 64},  {256, 2048, 64}, {16, 2048, 64},  {8, 2048, 64},
                              {4, 2048, 64},   {16, 32768, 64}, {64, 512, 64},   {16, 512, 64},
                              {64, 2048, 512}, {8, 1024, 64},   {2, 32768, 64},  {48, 2048, 64},
                              {56, 2048, 64},  {60, 2048, 64},  {96, 2048, 64},  {112, 2048, 64},
                              {120, 2048, 64}, {128, 2048, 64}, {64, 2048, 128}, {64, 2048, 192},
                              {64, 2048, 256}, {64, 2048, 320}, {64, 2048, 384}, {128, 2048, 192}};
const std::pair<int, int> kCaches[] = {{1000, 330}, {256, 1024}, {64, 2048}, {32, 2048},
                                       {16, 2048},  {8, 4096},   {8, 32768}};
const FormatCase kFormats[] = {
    {"fp16", {}},
    {"fp8", {KvKind::f8, 8, 8, 0, 0}},
    {"kivi4", {KvKind::kivi, 4, 4, 32, 32}},
    {"kivi4.5", {KvKind::kivi, 4, 4, 32, 32, 32, 8, true}},
    {"kivi3.5", {KvKind::kivi, 4, 2, 32, 32, 32, 8, true}},
    {"kivi2-r128", {KvKind::kivi, 2, 2, 32, 128}},
    {"kivi2", {KvKind::kivi, 2, 2, 32, 32}},
    {"kivi2-p8", {KvKind::kivi, 2, 2, 32, 32, 0, 8}},
    {"kivi2-bias", {KvKind::kivi, 2, 2, 32, 32, 0, 16, true}},
    {"kivi2-sinks", {KvKind::kivi, 2, 2, 32, 32, 32}},
    {"kivi2.5-r128", {KvKind::kivi, 2, 2, 32, 128, 32, 8, true}},
    {"kivi2.5", {KvKind::kivi, 2, 2, 32, 32, 32, 8, true}},
    {"kivi2-g64", {KvKind::kivi, 2, 2, 64, 64}},
    {"kivi2.25", {KvKind::kivi, 2, 2, 64, 64, 64, 8, true}},
};

std::string describe(const ShapeCase& s) {
  char text[80];
  std::snprintf(text, sizeof text, "%s (%d, %d)", s.name, s.sequences, s.tokens);
  return text;
}

void sweep(const StoreBench& bench, const DecodeWorkspace& workspace, double copy) {
  for (const int blocks : {1, 2})
    for (const int warps : {4, 6, 8, 10, 12, 16})
      for (const int stages : {2, 3, 4, 6}) {
        if (blocks * warps > 16 || warps * blocks < 4 || blocks * warps * stages > 40) continue;
        const double us = bench.attend_us(
            workspace, {.warps = warps, .stages = stages, .blocks_per_multiprocessor = blocks});
        std::printf(" %dx%dx%d:%.1f", blocks, warps, stages, bench.bytes() / us / 1e3 / copy * 100);
      }
}

// The parts of `text` between separators.
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

void compare(const StoreBench& bench, const DecodeWorkspace& workspace, double copy,
             const std::string& tunings) {
  for (const std::string& text : split(tunings, ',')) {
    cuda::DecodeTuning t;
    if (std::sscanf(text.c_str(), "%dx%dx%d", &t.warps, &t.stages, &t.tile_weight) != 3) {
      std::fprintf(stderr, "--tunings: \"%s\" is not WARPSxSTAGESxTILE\n", text.c_str());
      std::exit(2);
    }
    const double us = bench.attend_us(workspace, t);
    std::printf(" %s: %.2f us %.1f %%;", text.c_str(), us, bench.bytes() / us / 1e3 / copy * 100);
  }
}

void compare_shared(CudaBackend& backend, const DecodeWorkspace& workspace, const ShapeCase& model,
                    const FormatCase& f, const std::string& shapes) {
  for (const SharedCase& c : kShared) {
    ShapeCase shape = model;
    shape.sequences = c.samples, shape.tokens = c.prompt + c.rest;
    char text[80];
    std::snprintf(text, sizeof text, "%s (%d, %d + %d)", shape.name, c.samples, c.prompt, c.rest);
    const std::vector<std::string> wanted = split(shapes, ';');
    if (std::none_of(wanted.begin(), wanted.end(), [&](const std::string& part) {
          return std::string(text).find(part) != std::string::npos;
        }))
      continue;
    std::printf("%-34s %-12s", text, f.name);
    bool keeps = false;
    KeptGroups kept;
    for (const Sharing sharing : {Sharing::copies, Sharing::shared, Sharing::cascade}) {
      StoreBench bench(backend, shape, f.format, sharing, c.prompt);
      std::printf(" %8.2f", bench.attend_us(workspace, {}));
      keeps = bench.keeps_group(kept);
      if (sharing != Sharing::cascade) continue;
      bench.set_whole_rests(true);
      std::printf(" %8.2f", bench.attend_us(workspace, {}));
    }
    std::printf("  %s\n", !keeps ? "apart" : kept.whole_rests ? "grouped, whole" : "grouped, cut");
    std::fflush(stdout);
  }
}

int run(int argc, char** argv) {
  const char *only = nullptr, *shapes = "", *tunings = nullptr;
  bool sweeps = false, timeline = false, shared = false, mixed = false;
  cuda::DecodeTuning tuning;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--sweep") == 0) sweeps = true;
    if (std::strcmp(argv[i], "--mixed") == 0) mixed = true;
    if (std::strcmp(argv[i], "--timeline") == 0) timeline = true;
    if (std::strcmp(argv[i], "--shared") == 0) shared = true;
    if (std::strcmp(argv[i], "--heads-apart") == 0) tuning.heads_apart = true;
    if (i + 1 < argc && std::strcmp(argv[i], "--only") == 0) only = argv[i + 1];
    if (i + 1 < argc && std::strcmp(argv[i], "--shape") == 0) shapes = argv[i + 1];
    if (i + 1 < argc && std::strcmp(argv[i], "--tunings") == 0) tunings = argv[i + 1];
  }
  CudaBackend backend(0);
  const DecodeWorkspace workspace =
      cuda::make_decode_workspace(backend.properties(), backend.stream());
  const double copy = copy_gb_s(backend.stream());
  std::printf("%s: copy %.0f GB/s (read + written)\n", backend.properties().name.c_str(), copy);
  if (shared) {
    std::printf("%-34s %-12s %8s %8s %8s %8s  (us)\n", "(samples, prompt + rest)", "", "copies",
                "shared", "cut", "whole");
    for (const ShapeCase& model : kModels)
      for (const FormatCase& f : kFormats) {
        const std::vector<std::string> names = split(only != nullptr ? only : f.name, ';');
        if (std::find(names.begin(), names.end(), f.name) == names.end()) continue;
        if (f.format.group > 0 && model.head_dim % f.format.group != 0) continue;
        compare_shared(backend, workspace, model, f, shapes);
      }
    return 0;
  }
  for (const ShapeCase& model : kModels)
    for (const auto& [sequences, tokens] : kCaches)
      for (const FormatCase& f : kFormats) {
        if (only != nullptr) {
          const std::vector<std::string> names = split(only, ';');
          if (std::find(names.begin(), names.end(), f.name) == names.end()) continue;
        }
        ShapeCase shape = model;
        shape.sequences = sequences, shape.tokens = tokens;
        const std::vector<std::string> wanted = split(shapes, ';');
        if (std::none_of(wanted.begin(), wanted.end(), [&](const std::string& text) {
              return describe(shape).find(text) != std::string::npos;
            }))
          continue;
        if (f.format.group > 0 && shape.head_dim % f.format.group != 0) continue;
        const StoreBench bench(backend, shape, f.format, Sharing::copies, 0, mixed);
        std::printf("%-26s %-12s ", describe(shape).c_str(), f.name);
        if (sweeps) {
          sweep(bench, workspace, copy);
        } else if (tunings != nullptr) {
          compare(bench, workspace, copy, tunings);
        } else {
          const double us = bench.attend_us(workspace, tuning), rate = bench.bytes() / us / 1e3;
          std::printf("%8.2f us %7.0f GB/s %5.1f %%", us, rate, rate / copy * 100);
        }
        if (timeline && !print_timeline([&](int layer) { return bench.arguments(layer); },
                                        backend.properties(), workspace, backend.stream(), tuning))
          std::printf(" (no timeline)");
        std::printf("\n");
        std::fflush(stdout);
      }
  return 0;
}

}  // namespace
}  // namespace kivi

int main(int argc, char** argv) { return kivi::run(argc, argv); }
