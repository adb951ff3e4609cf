#include "server/auth.h"

#include <openssl/crypto.h>

#include <cctype>

namespace kivi {

bool bearer_matches(const std::vector<std::string>& keys, std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() < kScheme.size()) return false;
  for (size_t i = 0; i < kScheme.size(); ++i)
    if (std::tolower(static_cast<unsigned char>(authorization[i])) != kScheme[i]) return false;
  std::string_view key = authorization.substr(kScheme.size());
  while (!key.empty() && key.front() == ' ') key.remove_prefix(1);
  // Every key is looked at, so that the time does not say which one came near.
  bool found = false;
  for (const std::string& known : keys)
    if (known.size() == key.size() && !known.empty() &&
        CRYPTO_memcmp(known.data(), key.data(), key.size()) == 0)
      found = true;
  return found;
}

}  // namespace kivi
