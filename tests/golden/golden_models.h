// SPDX-License-Identifier: Apache-2.0
// Golden models: small random models of every family, whose weights are a function of their
// tensors' names (make_goldens.py has the same function), written out as model folders.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/text/pre_tokenizer.h"
#include "kernels/half.h"
#include "tests/model/temporary_folder.h"

namespace kivi {

// tests/golden of the checkout: of the build, or of SOURCE_FOLDER where the program was built
// elsewhere (scripts/gpu-test).
inline std::string golden_folder() {
  const char* elsewhere = std::getenv("SOURCE_FOLDER");
  return (elsewhere != nullptr ? elsewhere : KIVI_SOURCE_DIR) + std::string("/tests/golden/");
}

inline nlohmann::json read_golden_model(const std::string& name) {
  std::ifstream file(golden_folder() + name + ".json");
  return nlohmann::json::parse(file);
}

inline std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden_folder()))
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem().string());
  std::sort(names.begin(), names.end());
  return names;
}

// Element `i` of the tensor whose name hashes to `seed`: make_goldens.py, weight().
inline float golden_weight(uint64_t seed, uint64_t i, const nlohmann::json& exponent) {
  uint64_t x = seed + i + 0x9E3779B97F4A7C15;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  x ^= x >> 31;
  const int byte = int(x >> 56);
  if (exponent.is_string()) return 1 + float(byte % 64 - 32) / 128;
  return std::ldexp(float(byte - 128), exponent.get<int>());
}

// The tensor's bytes in "float32", "float16" or "bfloat16"; every type holds the numbers exactly.
inline std::string golden_tensor(const std::string& name, size_t size,
                                 const nlohmann::json& exponent, const std::string& dtype) {
  uint64_t seed = 0xCBF29CE484222325;
  for (const char c : name) seed = (seed ^ uint8_t(c)) * 0x100000001B3;
  std::string bytes(size * (dtype == "float32" ? 4 : 2), '\0');
  for (size_t i = 0; i < size; ++i) {
    const float x = golden_weight(seed, i, exponent);
    const uint16_t half = dtype == "float16" ? to_f16_saturated(x).bits : to_bf16(x).bits;
    if (dtype == "float32")
      std::memcpy(&bytes[4 * i], &x, 4);
    else
      std::memcpy(&bytes[2 * i], &half, 2);
  }
  return bytes;
}

// A tokenizer.json of the 256 bytes, since what is served has one.
inline nlohmann::json bytes_tokenizer() {
  const ByteAlphabet alphabet;
  nlohmann::json vocab = nlohmann::json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab[std::string(alphabet.character(static_cast<unsigned char>(byte)))] = byte;
  return {{"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"decoder", {{"type", "ByteLevel"}}}};
}

// Writes config.json and the checkpoint, in as many shards as the golden file says. `dtype` empty:
// the one of config.json.
inline void write_golden_model(const nlohmann::json& golden, const TemporaryFolder& folder,
                               std::string dtype = "") {
  nlohmann::json config = golden["config"];
  const char* key = config.contains("dtype") ? "dtype" : "torch_dtype";
  if (dtype.empty()) dtype = config[key].get<std::string>();
  config[key] = dtype;
  folder.write("config.json", config.dump());
  folder.write("tokenizer.json", bytes_tokenizer().dump());

  const auto shards = golden["shards"].get<size_t>();
  std::vector<nlohmann::json> headers(shards);
  std::vector<std::string> data(shards);
  nlohmann::json weight_map;
  const auto file_name = [&](size_t shard) {
    if (shards == 1) return std::string("model.safetensors");
    return "model-0000" + std::to_string(shard + 1) + "-of-0000" + std::to_string(shards) +
           ".safetensors";
  };
  const std::map<std::string, std::string> names = {
      {"float32", "F32"}, {"float16", "F16"}, {"bfloat16", "BF16"}};
  size_t index = 0;
  for (const nlohmann::json& tensor : golden["tensors"]) {
    const auto name = tensor[0].get<std::string>();
    const auto shape = tensor[1].get<std::vector<size_t>>();
    size_t size = 1;
    for (const size_t n : shape) size *= n;
    const size_t shard = index++ % shards;
    const size_t begin = data[shard].size();
    data[shard] += golden_tensor(name, size, tensor[2], dtype);
    headers[shard][name] = {{"dtype", names.at(dtype)},
                            {"shape", shape},
                            {"data_offsets", {begin, data[shard].size()}}};
    weight_map[name] = file_name(shard);
  }
  for (size_t shard = 0; shard < shards; ++shard)
    folder.write(file_name(shard), safetensors_bytes(headers[shard].dump(), 0) + data[shard]);
  if (shards > 1)
    folder.write("model.safetensors.index.json", nlohmann::json{{"weight_map", weight_map}}.dump());
}

}  // namespace kivi
