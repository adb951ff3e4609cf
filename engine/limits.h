// SPDX-License-Identifier: Apache-2.0
// Every fixed limit of the engine and the server, with its reason, and the defaults of some
// configurable limits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kivi {

// Stop strings, stop ids and bad words are scanned at each token, and logit_bias is sent to the
// device.
inline constexpr int kMaxStopStrings = 64;
inline constexpr int kMaxStopStringBytes = 1024;
inline constexpr int kMaxStopTokenIds = 256;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr int kMaxBadWords = 256;
// OpenAI's ranges.
inline constexpr int kMaxChoices = 128;  // n, best_of
inline constexpr int kMaxPromptsPerRequest = 2048;
inline constexpr int kDefaultMaxLogprobs = 20;
inline constexpr int kDefaultMaxTokens = 16;  // completions, as OpenAI

// Texts. A tokenizer takes up to 230 bytes of memory for each byte of a text without a blank. A
// reply is counted before it exists, by its number of tokens and logprobs.
inline constexpr int64_t kDefaultMaxTokenizeBytes = 1 << 20;
inline constexpr int64_t kDefaultMaxReplyBytes = 128 << 20;

// Files: a header or JSON larger than this is not a model's.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the format's own limit
inline constexpr int64_t kMaxChatTemplateBytes = 1 << 20;           // the largest known are 20 KB

// HTTP.
inline constexpr size_t kDefaultMaxBodyBytes = 16 << 20;  // a 2,048-prompt batch of lm-eval fits
inline constexpr size_t kDefaultMaxBodyBytesInFlight = 256 << 20;  // 16 of the largest bodies
// Connections, if the process may open enough file descriptors.
inline constexpr int kDefaultMaxConnections = 4096;
inline constexpr int kDefaultMaxGrpcConnections = 1024;  // a client of gRPC needs but one
inline constexpr size_t kMaxHeaderBytes = 64 << 10;
// Connections beyond max_connections that may still ask for an open path (/health, /metrics).
inline constexpr int kReservedConnections = 64;
// A request's JSON: a value takes 16 bytes of memory, a string, name, list or object up to 200. As
// many token ids fit as may wait by the default of max_num_queued_tokens.
inline constexpr size_t kMaxJsonValues = 4 << 20;
inline constexpr size_t kMaxJsonNodes = 256 << 10;
inline constexpr size_t kCacheSaltBytesMax = 256;
inline constexpr int kMaxChatObjectFields = 1024;  // of one object in a chat's body

}  // namespace kivi
