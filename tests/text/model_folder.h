// SPDX-License-Identifier: Apache-2.0
// What the tests of this folder share: a model folder with configurations of the test's own beside
// a tokenizer's file, and a reader of JSON files.
#pragma once

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace kivi::testing {

class ModelFolder {
 public:
  explicit ModelFolder(const std::string& tokenizer_model = "") {
    std::string pattern = (std::filesystem::temp_directory_path() / "kivi_text_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
    if (!tokenizer_model.empty()) {
      std::filesystem::copy_file(tokenizer_model, path_ + "/tokenizer.model");
    }
  }
  ~ModelFolder() { std::filesystem::remove_all(path_); }
  ModelFolder(const ModelFolder&) = delete;
  ModelFolder& operator=(const ModelFolder&) = delete;

  ModelFolder& write(const std::string& name, const std::string& content) {
    std::ofstream(path_ + "/" + name, std::ios::binary) << content;
    return *this;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline nlohmann::json read_json(const std::string& path) {
  std::ifstream file(path);
  REQUIRE(file);
  return nlohmann::json::parse(file);
}

}  // namespace kivi::testing
