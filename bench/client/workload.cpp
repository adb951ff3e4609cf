// SPDX-License-Identifier: Apache-2.0
#include "bench/client/workload.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "bench/client/streams.h"

namespace kivi::load {
namespace {

constexpr const char* kWords[] = {
    "the",   "of",    "and",   "to",    "in",    "is",    "that",   "for",   "it",     "was",
    "on",    "are",   "as",    "with",  "his",   "they",  "at",     "be",    "this",   "have",
    "from",  "or",    "had",   "by",    "but",   "some",  "what",   "there", "we",     "can",
    "out",   "other", "were",  "all",   "your",  "when",  "up",     "use",   "how",    "said",
    "an",    "each",  "she",   "which", "do",    "their", "time",   "if",    "will",   "way",
    "about", "many",  "then",  "them",  "would", "write", "like",   "so",    "these",  "her",
    "long",  "make",  "thing", "see",   "him",   "two",   "has",    "look",  "more",   "day",
    "could", "go",    "come",  "did",   "my",    "sound", "no",     "most",  "number", "who",
    "over",  "know",  "water", "than",  "call",  "first", "people", "may",   "down",   "side",
    "been",  "now",   "find",  "any",   "new",   "work",  "part",   "take",  "get",    "place"};

void append_ids(const WorkloadOptions& options, uint64_t stream, int count,
                std::vector<int32_t>& ids) {
  Random random(options.seed, stream);
  const int low = options.vocab_size / 4, high = std::max(low, options.vocab_size * 3 / 4 - 1);
  for (int i = 0; i < count; ++i) ids.push_back(int32_t(random.integer(low, high)));
}

// own_stream: the stream of what the prompt shares with no other.
void fill_prompt(const WorkloadOptions& options, uint64_t own_stream, int prefix,
                 LoadRequest& request) {
  const int shared = std::min(options.prefix_tokens, request.prompt_tokens);
  const int own = request.prompt_tokens - shared;
  const uint64_t prefix_stream = kPrefixStream + uint64_t(prefix);
  if (options.format == PromptFormat::ids) {
    request.ids.reserve(size_t(request.prompt_tokens));
    append_ids(options, prefix_stream, shared, request.ids);
    append_ids(options, own_stream, own, request.ids);
    return;
  }
  request.text = words_of(options.seed, prefix_stream, shared);
  if (shared > 0 && own > 0) request.text += ' ';
  request.text += words_of(options.seed, own_stream, own);
}

uint64_t stream_of(int run, int index) {
  return kPromptStream + (uint64_t(run) << 40) + uint64_t(index);
}

// The numbers below `count` in the seed's order.
std::vector<size_t> permutation(uint64_t seed, size_t count) {
  Random random(seed, kShareGptStream);
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t(0));
  for (size_t i = count; i > 1; --i)
    std::swap(order[i - 1], order[size_t(random.integer(0, int64_t(i) - 1))]);
  return order;
}

// 0: not cut. A request that is no longer than `cancel_after` ends before it can be cut.
int draw_cancel(const WorkloadOptions& options, Random& random) {
  return random.uniform() < options.cancel_share ? options.cancel_after : 0;
}

}  // namespace

std::string words_of(uint64_t seed, uint64_t stream, int count) {
  Random random(seed, stream);
  std::string text;
  for (int i = 0; i < count; ++i) {
    if (i > 0) text += ' ';
    text += kWords[random.integer(0, int64_t(std::size(kWords)) - 1)];
  }
  return text;
}

std::vector<LoadRequest> make_workload(const WorkloadOptions& options, int run) {
  Random lengths(options.seed, kLengthStream);
  Random cancels(options.seed, kCancelStream);
  Random prefixes(options.seed, kPrefixChoiceStream);
  const LengthDrawer prompt(options.prompt), output(options.output);
  std::vector<LoadRequest> requests(size_t(options.count));
  for (int i = 0; i < options.count; ++i) {
    LoadRequest& request = requests[size_t(i)];
    request.prompt_tokens = prompt.draw(lengths);
    request.max_tokens = output.draw(lengths);
    request.cancel_after = draw_cancel(options, cancels);
    fill_prompt(options, stream_of(run, i), int(prefixes.integer(0, options.prefix_count - 1)),
                request);
  }
  return requests;
}

std::vector<LoadRequest> make_workload(const WorkloadOptions& options,
                                       const std::vector<Conversation>& conversations, int run) {
  std::vector<size_t> order = permutation(options.seed, conversations.size());
  if (run == kWarmUpRun) std::reverse(order.begin(), order.end());
  Random cancels(options.seed, kCancelStream);
  std::vector<LoadRequest> requests(size_t(options.count));
  for (size_t i = 0; i < requests.size(); ++i) {
    LoadRequest& request = requests[i];
    const Conversation& c = conversations[order[i % order.size()]];
    request.text = c.prompt;
    request.ids = c.prompt_ids;
    request.prompt_tokens = c.prompt_tokens;
    request.max_tokens = c.output_tokens;
    request.cancel_after = draw_cancel(options, cancels);
  }
  return requests;
}

}  // namespace kivi::load
