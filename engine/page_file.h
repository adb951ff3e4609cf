// SPDX-License-Identifier: Apache-2.0
// The format of a file that holds a piece of the prefix cache (docs/design/kv-tiers.md, section 4).
//
//   header (128 bytes) | pages, one after the other | tag (16 bytes)
//
// The tag is that of AES-256-GCM over header and pages, under a key of the folder and of the file's
// own salt. It says that nothing was changed, cut off or moved to another name. If the folder is
// encrypted, the pages are too; else they are only authenticated. Any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"
#include "engine/piece_store.h"

namespace kivi {

// Keys of a folder, derived from its secret.
struct PageFileKeys {
  BlockName pages{};
  bool encrypts = false;

  static PageFileKeys of(std::string_view secret, bool encrypts);
};

// What a file must hold. Everything but its pages is known before it is opened.
struct PageFileContent {
  PieceKey key;
  BlockName fingerprint{};  // of the model, the format and the device
  size_t page_bytes = 0;
  std::span<std::byte* const> pages;
};

// Returns the bytes of a file with this many pages.
int64_t page_file_bytes(size_t pages, size_t page_bytes);

// Writes `path` whole or not at all: a new file beside it takes its name when it is complete. Files
// are readable by their owner alone. The error names the file and the system's reason.
Status write_page_file(const std::string& path, const PageFileContent& content,
                       const PageFileKeys& keys);
// Reads the pages. The error says what is wrong with which file. After an error the contents of the
// pages are undefined.
Status read_page_file(const std::string& path, const PageFileContent& content,
                      const PageFileKeys& keys);

}  // namespace kivi
