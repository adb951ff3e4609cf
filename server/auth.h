// SPDX-License-Identifier: Apache-2.0
// API keys: reading them, judging them, replacing them while the server runs. HTTP and gRPC send
// them alike, as `authorization: Bearer KEY`.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/server_config.h"

namespace kivi {

// Identifies an API key without telling it. A key has the same id in both front ends, after a
// reload and in the next process.
using KeyId = uint64_t;
inline constexpr KeyId kNoKey = 0;  // the server is open: it has no keys

KeyId key_id(std::string_view key);

// Any thread.
class ApiKeys {
 public:
  explicit ApiKeys(std::vector<std::string> keys);

  // Returns true if the server has no keys, so that no request needs one.
  bool open() const;
  // Returns the id of the key in `authorization` ("Bearer KEY"), or nothing if that is not one of
  // the keys. An open server accepts everything and returns kNoKey. All wrong keys of one length
  // take the same time.
  std::optional<KeyId> match(std::string_view authorization) const;
  // From now on these keys count. Requests that are running are not touched.
  void replace(std::vector<std::string> keys);

 private:
  using Keys = std::vector<std::string>;
  std::shared_ptr<const Keys> keys() const;

  mutable std::mutex mutex_;  // guards keys_
  std::shared_ptr<const Keys> keys_;
};

// Reads the keys of a text, one a line. A byte order mark, carriage returns and blanks around a key
// are dropped, and so are empty lines. Errors name `source` and the line, never the key: a key with
// white space or a control character inside, and a text without any key.
Result<std::vector<std::string>> parse_api_keys(std::string_view text, const std::string& source);

// Returns true if only this machine reaches `host` (a name or an address). True also for a host
// that cannot be resolved: the front ends refuse it by name.
bool is_loopback(const std::string& host);

// Returns an error if a server without keys would listen on an address that others reach, and
// `allow_open` is not set.
Status check_access(const ServerConfig& config);

}  // namespace kivi
