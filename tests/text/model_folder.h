// SPDX-License-Identifier: Apache-2.0
// A model folder for a test: a tokenizer's file with configurations of the test's own beside it.
#pragma once

#include <filesystem>
#include <fstream>
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

}  // namespace kivi::testing
