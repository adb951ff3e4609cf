// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/kv_fingerprint.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <thread>
#include <vector>

#include "base/mapped_file.h"
#include "base/version.h"
#include "engine/block_name.h"
#include "engine/model/files/gguf.h"
#include "engine/serving/memory_plan.h"

namespace kivi {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = size_t(16) << 20;  // hashed by one thread at a time

Result<std::vector<std::string>> files_of(const std::string& place) {
  if (is_gguf_path(place)) return std::vector{place};
  std::vector<std::string> files;
  std::error_code error;
  for (fs::directory_iterator it(place, error), end; !error && it != end; it.increment(error)) {
    const fs::path& path = it->path();
    const bool counts = path.extension() == ".safetensors" || path.extension() == ".json";
    std::error_code ignored;
    if (counts && fs::file_size(path, ignored) > 0) files.push_back(path.string());
  }
  if (error)
    return Error{ErrorCode::not_found, fmt::format("{}: {}", place, error.message()), "model"};
  std::ranges::sort(files);
  return files;
}

// The hash of the hashes of the file's pieces.
BlockName hash_of(const MappedFile& file) {
  std::vector<BlockName> pieces((file.bytes() + kPieceBytes - 1) / kPieceBytes);
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < pieces.size(); i = next++) {
      const size_t begin = i * kPieceBytes;
      const auto* data = reinterpret_cast<const char*>(file.data()) + begin;
      pieces[i] =
          sha256(std::array{std::string_view(data, std::min(kPieceBytes, file.bytes() - begin))});
    }
  };
  {
    std::vector<std::jthread> threads;
    const size_t cores = std::max(1u, std::thread::hardware_concurrency());
    for (size_t i = 1; i < std::min(cores, pieces.size()); ++i) threads.emplace_back(work);
    work();
  }
  std::vector<std::string_view> parts;
  for (const BlockName& piece : pieces) parts.push_back(name_view(piece));
  return sha256(parts);
}

}  // namespace

Result<std::string> kv_fingerprint(const EngineConfig& config, const std::string& model_place,
                                   const DeviceInfo& device, const KvLayout& layout,
                                   const std::string& computed) {
  std::vector<std::string> parts = {
      KIVI_VERSION, device.kind, device.name, describe(layout) + describe(layout.layer_bits),
      computed,
      fmt::format("{} {} {} {} {}", layout.shape.layers, layout.shape.heads, layout.shape.head_dim,
                  layout.page_bytes(), layout.slot_bytes()),
      // Where chunks end decides what is read as quantized.
      fmt::format("{} {} {} {}", int(config.kivi_prefill), config.prefill_chunk_tokens,
                  config.prefill_staging_tokens, config.load_format)};
  KIVI_ASSIGN_OR_RETURN(const std::vector<std::string> files, files_of(model_place));
  for (const std::string& path : files) {
    KIVI_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
    parts.push_back(fs::path(path).filename().string());
    parts.emplace_back(name_view(hash_of(file)));
  }
  const std::vector<std::string_view> views(parts.begin(), parts.end());
  const BlockName name = sha256(views);
  return std::string(name_view(name));
}

}  // namespace kivi
