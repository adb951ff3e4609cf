// SPDX-License-Identifier: Apache-2.0
#include "engine/block_name.h"

#include <openssl/evp.h>
#include <openssl/rand.h>

#include <memory>

#include "base/verify.h"

namespace kivi {
namespace {

// Fetched once: a fetch takes longer than the hash of a block.
const EVP_MD* algorithm() {
  static const EVP_MD* const md = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  return md;
}

// Each thread has a context of its own: making one takes longer than the hash of a block.
BlockName digest(std::span<const std::string_view> parts) {
  thread_local const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(
      EVP_MD_CTX_new(), EVP_MD_CTX_free);
  BlockName name;
  bool done = EVP_DigestInit_ex2(context.get(), algorithm(), nullptr) == 1;
  for (const std::string_view part : parts)
    done = done && EVP_DigestUpdate(context.get(), part.data(), part.size()) == 1;
  done = done && EVP_DigestFinal_ex(context.get(), name.data(), nullptr) == 1;
  KIVI_VERIFY(done);
  return name;
}

}  // namespace

BlockNamer::BlockNamer(std::string_view secret, std::string_view fingerprint)
    : key_(sha256(std::array{std::string_view("kivi block names"), secret, fingerprint})) {}

BlockName BlockNamer::root(std::string_view salt) const {
  return digest(std::array{std::string_view("salt"), name_view(key_), salt});
}

BlockName BlockNamer::next(const BlockName& parent, std::span<const int32_t> tokens) const {
  const std::string_view bytes(reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes());
  return digest(std::array{name_view(parent), bytes});
}

BlockName sha256(std::span<const std::string_view> parts) {
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> hash(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  bool done = EVP_DigestInit_ex2(hash.get(), algorithm(), nullptr) == 1;
  for (const std::string_view part : parts) {
    const uint64_t length = part.size();
    done = done && EVP_DigestUpdate(hash.get(), &length, sizeof length) == 1 &&
           EVP_DigestUpdate(hash.get(), part.data(), part.size()) == 1;
  }
  BlockName name;
  done = done && EVP_DigestFinal_ex(hash.get(), name.data(), nullptr) == 1;
  KIVI_VERIFY(done);
  return name;
}

std::string random_secret() {
  std::string secret(32, '\0');
  const int drawn = RAND_bytes(reinterpret_cast<unsigned char*>(secret.data()), 32);
  KIVI_VERIFY(drawn == 1);
  return secret;
}

}  // namespace kivi
