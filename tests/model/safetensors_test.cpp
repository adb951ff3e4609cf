// SPDX-License-Identifier: Apache-2.0
// Safetensors files that are wrong in every way: each gives an error that says what and where, and
// none makes the reader leave the file.
#include "engine/model/files/safetensors.h"

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <random>

#include "tests/model/temporary_folder.h"

namespace kivi {

namespace {

Result<TensorMap> parse(const std::string& bytes) {
  // A copy of exactly this size, so that AddressSanitizer sees any read beyond it.
  const std::vector<char> exact(bytes.begin(), bytes.end());
  return parse_safetensors(reinterpret_cast<const std::byte*>(exact.data()), exact.size(),
                           "x.safetensors");
}

std::string error_of_tensors(const std::string& bytes) {
  const auto tensors = parse(bytes);
  return tensors.ok() ? "no error" : tensors.error().message;
}

// One tensor "w" with the given entry, in a file of 64 data bytes.
std::string with_entry(const std::string& entry) {
  return safetensors_bytes("{\"w\":" + entry + "}", 64);
}

const std::string kGood = R"({"__metadata__":{"format":"pt"},)"
                          R"("a":{"dtype":"BF16","shape":[2,8],"data_offsets":[0,32]},)"
                          R"("b":{"dtype":"F32","shape":[8],"data_offsets":[32,64]},)"
                          R"("empty":{"dtype":"F16","shape":[0,3],"data_offsets":[64,64]},)"
                          R"("scalar":{"dtype":"I64","shape":[],"data_offsets":[8,16]}})";

}  // namespace

TEST_CASE("A good file gives its tensors, with dtypes that are not computed with left unnamed") {
  const std::string bytes = safetensors_bytes(kGood, 64);
  const auto tensors = parse(bytes);
  REQUIRE(tensors.ok());
  REQUIRE(tensors->size() == 4);
  CHECK(describe(tensors->at("a")) == "[2, 8] BF16");
  CHECK(tensors->at("a").dtype == DType::bf16);
  CHECK(tensors->at("b").bytes == 32);
  CHECK(tensors->at("b").data - tensors->at("a").data == 32);
  CHECK(tensors->at("empty").bytes == 0);
  CHECK_FALSE(tensors->at("scalar").dtype.has_value());
}

TEST_CASE("A file that is cut off anywhere is refused") {
  const std::string bytes = safetensors_bytes(kGood, 64);
  for (size_t length = 0; length < bytes.size(); ++length) {
    CAPTURE(length);
    CHECK_FALSE(parse(bytes.substr(0, length)).ok());
  }
}

TEST_CASE("A header longer than the file, or than any header, is refused by its length") {
  std::string bytes = safetensors_bytes(kGood, 64);
  for (const uint64_t length :
       {uint64_t(bytes.size()) - 7, uint64_t(1) << 32, uint64_t(1) << 63, ~uint64_t(0)}) {
    std::memcpy(bytes.data(), &length, sizeof(length));
    CHECK(error_of_tensors(bytes) ==
          fmt::format("x.safetensors: header length is {}, must be at most {}", length,
                      bytes.size() - 8));
  }
}

TEST_CASE("Every wrong entry is refused, and the message names file and tensor") {
  const auto [entry, expected] = GENERATE(table<std::string, std::string>({
      {R"({"dtype":"F32","shape":[8],"data_offsets":[40,72]})",
       "data_offsets [40, 72] lie outside of the file's 64 data bytes"},
      {R"({"dtype":"F32","shape":[8],"data_offsets":[32,0]})",
       "data_offsets [32, 0] lie outside of the file's 64 data bytes"},
      {R"({"dtype":"F32","shape":[8],"data_offsets":[0,18446744073709551615]})",
       "lie outside of the file's 64 data bytes"},
      {R"({"dtype":"F32","shape":[9],"data_offsets":[0,32]})",
       "shape [9] of F32 is 36 bytes, data_offsets [0, 32] span 32"},
      {R"({"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]})", "is too large"},
      {R"({"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]})", "is too large"},
      {R"({"dtype":"F32","shape":[-8],"data_offsets":[0,32]})", "shape must be a list"},
      {R"({"dtype":"F32","shape":[8.0],"data_offsets":[0,32]})", "shape must be a list"},
      {R"({"dtype":"F32","shape":8,"data_offsets":[0,32]})", "shape must be a list"},
      {R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,8],"data_offsets":[0,32]})",
       "shape must be a list"},
      {R"({"dtype":"F32","data_offsets":[0,32]})", "shape must be a list"},
      {R"({"dtype":"F32","shape":[8],"data_offsets":[0]})", "data_offsets must be [begin, end]"},
      {R"({"dtype":"F32","shape":[8],"data_offsets":[-1,31]})", "data_offsets must be"},
      {R"({"dtype":"F32","shape":[8]})", "data_offsets must be"},
      {R"({"dtype":"Q4_K","shape":[8],"data_offsets":[0,32]})", "unknown dtype 'Q4_K'"},
      {R"({"dtype":7,"shape":[8],"data_offsets":[0,32]})", "has no dtype"},
      {R"({"shape":[8],"data_offsets":[0,32]})", "has no dtype"},
      {R"([1,2])", "its header entry is not an object"},
      {R"(null)", "its header entry is not an object"},
  }));
  const std::string message = error_of_tensors(with_entry(entry));
  CAPTURE(entry, message);
  CHECK(message.starts_with("x.safetensors: tensor 'w': "));
  CHECK(message.find(expected) != std::string::npos);
}

TEST_CASE("Tensors that share bytes are allowed: tied weights may be stored so") {
  CHECK(parse(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},)"
                                R"("b":{"dtype":"F32","shape":[8],"data_offsets":[16,48]}})",
                                64))
            .ok());
}

TEST_CASE("A header that is not a JSON object is refused") {
  CHECK(error_of_tensors(safetensors_bytes("not json", 8)).find("is not valid JSON") !=
        std::string::npos);
  CHECK(error_of_tensors(safetensors_bytes("\"a\xff\"", 8)).find("is not valid JSON") !=
        std::string::npos);
  CHECK(error_of_tensors(safetensors_bytes("[]", 8)) ==
        "x.safetensors: header is not a JSON object");
  CHECK(error_of_tensors(safetensors_bytes("", 8)).find("is not valid JSON") != std::string::npos);
}

TEST_CASE("A deeply nested header is refused before it is parsed") {
  constexpr size_t kLevels = 1'000'000;
  for (const char* open : {"[", "{\"a\":"}) {
    std::string header;
    for (size_t i = 0; i < kLevels; ++i) header += open;
    CHECK(error_of_tensors(safetensors_bytes(header, 0)) ==
          "x.safetensors: header: JSON is nested more than 64 levels deep");
  }
}

TEST_CASE("Thousands of mutated files never lead out of the file") {
  const unsigned seed = 20261124;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const std::string good = safetensors_bytes(kGood, 64);
  int refused = 0;
  for (int i = 0; i < 5000; ++i) {
    std::string bytes = good;
    for (unsigned n = 1 + random() % 4; n > 0; --n) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = char(random());
          break;
        case 1:
          bytes[at] = "0123456789,[]{}\""[random() % 16];
          break;
        case 2:
          bytes.erase(at, random() % 8);
          break;
        default:
          bytes.insert(at, bytes, random() % bytes.size(), random() % 8);
      }
      if (bytes.empty()) bytes = good;
    }
    const std::vector<char> exact(bytes.begin(), bytes.end());
    const auto* data = reinterpret_cast<const std::byte*>(exact.data());
    const auto tensors = parse_safetensors(data, exact.size(), "x");
    if (!tensors.ok()) {
      ++refused;
      continue;
    }
    for (const auto& [name, tensor] : *tensors) {
      REQUIRE(tensor.data >= data);
      REQUIRE(tensor.bytes <= size_t(data + exact.size() - tensor.data));
    }
  }
  CHECK(refused > 1000);  // the mutations are not harmless
  CHECK(refused < 5000);
}

TEST_CASE("A sharded checkpoint is read through its index") {
  const TemporaryFolder folder;
  const auto shard = [](const std::string& tensor) {
    return safetensors_bytes(
        "{\"" + tensor + R"(":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  };
  folder.write("one.safetensors", shard("a"));
  folder.write("two.safetensors", shard("b"));
  const std::string index = "model.safetensors.index.json";
  const auto open_error = [&] {
    const auto checkpoint = Checkpoint::open(folder.path());
    return checkpoint.ok() ? "no error" : checkpoint.error().message;
  };

  folder.write(index, R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  const auto checkpoint = Checkpoint::open(folder.path());
  REQUIRE(checkpoint.ok());
  CHECK(checkpoint->tensors().size() == 2);

  folder.write(index, R"({"weight_map":{"a":"one.safetensors","b":"three.safetensors"}})");
  CHECK(open_error().find("three.safetensors: cannot be opened") != std::string::npos);
  folder.write(index, R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors"}})");
  CHECK(open_error().find("tensor 'b': is not in one.safetensors") != std::string::npos);
  folder.write(index, R"({"weight_map":{"a":"../one.safetensors"}})");
  CHECK(open_error().find("file '../one.safetensors' must be a plain name") != std::string::npos);
  folder.write(index, R"({"weight_map":{"a":1}})");
  CHECK(open_error().find("tensor 'a': its file must be a string") != std::string::npos);
  folder.write(index, R"([])");
  CHECK(open_error().find("weight_map must be an object") != std::string::npos);
  folder.write("two.safetensors", shard("a"));
  folder.write(index, R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  CHECK(open_error().find("tensor 'a': is also in") != std::string::npos);
}

TEST_CASE("A folder without weights is an error that names the file") {
  const TemporaryFolder folder;
  const auto checkpoint = Checkpoint::open(folder.path());
  REQUIRE_FALSE(checkpoint.ok());
  CHECK(checkpoint.error().message.find("/model.safetensors: cannot be opened") !=
        std::string::npos);
  CHECK(checkpoint.error().code == ErrorCode::not_found);
}

}  // namespace kivi
