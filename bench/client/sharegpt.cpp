// SPDX-License-Identifier: Apache-2.0
#include "bench/client/sharegpt.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace kivi::load {
namespace {

constexpr int kTurnMin = 4;  // tokens; shorter turns are no questions

std::string text_of(const nlohmann::json& turn) {
  if (!turn.is_object()) return "";
  const auto value = turn.find("value");
  return value != turn.end() && value->is_string() ? value->get<std::string>() : "";
}

int tokens_of(const std::string& text, const Encode& encode, std::vector<int32_t>* ids) {
  if (!encode) return int(text.size() / 4);
  std::vector<int32_t> all = encode(text);
  const int count = int(all.size());
  if (ids != nullptr) *ids = std::move(all);
  return count;
}

}  // namespace

Result<std::vector<Conversation>> parse_sharegpt(const std::string& json, const std::string& file,
                                                 int prompt_max, int output_max,
                                                 const Encode& encode) {
  const auto all = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!all.is_array())
    return Error{ErrorCode::invalid,
                 fmt::format("{}: expected a JSON list of conversations", file)};
  std::vector<Conversation> conversations;
  for (const auto& entry : all) {
    if (!entry.is_object()) continue;
    const auto turns = entry.find("conversations");
    if (turns == entry.end() || !turns->is_array() || turns->size() < 2) continue;
    Conversation c;
    c.prompt = text_of((*turns)[0]);
    c.prompt_tokens = tokens_of(c.prompt, encode, &c.prompt_ids);
    c.output_tokens = tokens_of(text_of((*turns)[1]), encode, nullptr);
    if (c.prompt_tokens < kTurnMin || c.prompt_tokens > prompt_max) continue;
    if (c.output_tokens < kTurnMin || c.output_tokens > output_max) continue;
    conversations.push_back(std::move(c));
  }
  if (conversations.empty())
    return Error{
        ErrorCode::invalid,
        fmt::format("{}: none of {} conversations has two turns of 4 to {} and 4 to {} tokens",
                    file, all.size(), prompt_max, output_max)};
  return conversations;
}

}  // namespace kivi::load
