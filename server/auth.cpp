// SPDX-License-Identifier: Apache-2.0
#include "server/auth.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <utility>

namespace kivi {
namespace {

constexpr std::string_view kBlanks = " \t\r\v\f";

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) + 1 - first);
}

bool is_loopback_address(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &address, sizeof v4);
    return ntohl(v4.sin_addr.s_addr) >> 24 == 127;
  }
  if (address.sa_family != AF_INET6) return false;
  sockaddr_in6 v6;
  std::memcpy(&v6, &address, sizeof v6);
  return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) ||
         (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr) && v6.sin6_addr.s6_addr[12] == 127);
}

}  // namespace

KeyId key_id(std::string_view key) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data());
  KeyId id;
  std::memcpy(&id, digest.data(), sizeof id);
  return id == kNoKey ? 1 : id;
}

ApiKeys::ApiKeys(std::vector<std::string> keys)
    : keys_(std::make_shared<const Keys>(std::move(keys))) {}

std::shared_ptr<const ApiKeys::Keys> ApiKeys::keys() const {
  const std::lock_guard lock(mutex_);
  return keys_;
}

bool ApiKeys::open() const { return keys()->empty(); }

void ApiKeys::replace(std::vector<std::string> keys) {
  auto fresh = std::make_shared<const Keys>(std::move(keys));
  const std::lock_guard lock(mutex_);
  keys_ = std::move(fresh);
}

std::optional<KeyId> ApiKeys::match(std::string_view authorization) const {
  const std::shared_ptr<const Keys> keys = this->keys();
  if (keys->empty()) return kNoKey;
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() < kScheme.size()) return std::nullopt;
  for (size_t i = 0; i < kScheme.size(); ++i)
    if (std::tolower(static_cast<unsigned char>(authorization[i])) != kScheme[i])
      return std::nullopt;
  std::string_view key = authorization.substr(kScheme.size());
  while (!key.empty() && key.front() == ' ') key.remove_prefix(1);
  // Every key is looked at, so that the time does not say which one came near.
  bool found = false;
  for (const std::string& known : *keys)
    if (known.size() == key.size() && !known.empty() &&
        CRYPTO_memcmp(known.data(), key.data(), key.size()) == 0)
      found = true;
  if (!found) return std::nullopt;
  return key_id(key);
}

Result<std::vector<std::string>> parse_api_keys(std::string_view text, const std::string& source) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  std::vector<std::string> keys;
  for (int line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view key = trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (key.empty()) continue;
    const auto unfit = [](char c) { return static_cast<unsigned char>(c) <= ' ' || c == '\x7f'; };
    if (std::any_of(key.begin(), key.end(), unfit))
      return Error{
          ErrorCode::invalid,
          fmt::format("{}, line {}: the key has white space or a control character inside, "
                      "must be one key a line",
                      source, line),
          "api-key"};
    keys.emplace_back(key);
  }
  if (keys.empty())
    return Error{ErrorCode::invalid,
                 fmt::format("{} has no API key, must have at least one. Remove the setting to "
                             "serve without keys",
                             source),
                 "api-key"};
  return keys;
}

bool is_loopback(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const bool bracketed = host.starts_with('[') && host.ends_with(']');
  const std::string name = bracketed ? host.substr(1, host.size() - 2) : host;
  if (getaddrinfo(name.empty() ? nullptr : name.c_str(), "0", &hints, &found) != 0) return true;
  bool loopback = true;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next)
    loopback = loopback && is_loopback_address(*entry->ai_addr);
  freeaddrinfo(found);
  return loopback;
}

Status check_access(const ServerConfig& config) {
  if (!config.api_keys.empty() || config.allow_open || is_loopback(config.host)) return ok_status();
  return Error{ErrorCode::invalid,
               fmt::format("--host is {}, which other machines reach, and there is no API key, so "
                           "everybody could use the server. Name a file of keys (--api-key-file), "
                           "or say --allow-open if that is wanted",
                           config.host.empty() ? "empty" : config.host),
               "host"};
}

}  // namespace kivi
