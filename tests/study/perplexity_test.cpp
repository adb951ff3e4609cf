// SPDX-License-Identifier: Apache-2.0
// Perplexity through the engine: the protocol, and figures on a held-out sample.
#include "study/perplexity.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <functional>
#include <sstream>

#include "tests/study/scoring_model.h"

namespace kivi {

namespace {

// Four public-domain stories that no demo model has seen (chapters of Glinda of Oz, The Adventures
// of Buster Bear and The Light Princess; see models/README.md).
std::string sample() {
  std::ifstream file(std::string(KIVI_SOURCE_DIR) + "/tests/data/heldout_sample.txt");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Perplexity measure(const std::string& format, int chunk, int window, int windows) {
  const auto model = scoring_model(format, chunk);
  const auto ids = windows_of(stories_of(sample()), *model->tokenizer, window, windows);
  const auto measured = measure_perplexity(*model->engine, ids, {});
  if (!measured.ok()) FAIL(measured.error().message);
  CHECK(measured->tokens == int64_t(windows) * (window - 1));
  return *measured;
}

}  // namespace

TEST_CASE("Stories are what stands between marks, stripped, and longer than 200 characters") {
  const std::string story(201, 'a');
  std::string umlauts;  // 200 characters, 400 bytes
  for (int i = 0; i < 200; ++i) umlauts += "\xc3\xa4";
  CHECK(stories_of("").empty());
  CHECK(stories_of(std::string(200, 'a')).empty());
  CHECK(stories_of(story) == std::vector<std::string>{story});
  CHECK(stories_of(umlauts).empty());
  CHECK(stories_of("<|story|>\n\n " + story + " \n<|story|>short<|story|>" + umlauts + "b") ==
        std::vector<std::string>{story, umlauts + "b"});
  CHECK(stories_of(sample()).size() == 12);
}

TEST_CASE("Windows are consecutive ids of BOS, story, EOS; the rest is left out") {
  const auto model = scoring_model("fp16", 64);
  const Tokenizer& tokenizer = *model->tokenizer;
  const std::string one(201, 'a'), two(300, 'b');
  std::vector<int32_t> all;
  for (const std::string& story : {one, two}) {
    all.push_back(1);
    const std::vector<int32_t> ids = tokenizer.encode(story, false);
    all.insert(all.end(), ids.begin(), ids.end());
    all.push_back(2);
  }
  const auto windows = windows_of({one, two}, tokenizer, 16, 0);
  REQUIRE(windows.size() == all.size() / 16);
  std::vector<int32_t> joined;
  for (const auto& window : windows) joined.insert(joined.end(), window.begin(), window.end());
  CHECK(std::equal(joined.begin(), joined.end(), all.begin()));
  CHECK(windows_of({one, two}, tokenizer, 16, 1).size() == 1);
  CHECK(windows_of({one}, tokenizer, 1 << 20, 0).empty());
}

TEST_CASE("The loss on the held-out sample is the recorded one, whatever the chunks", "[long]") {
  // Measured with this program, which gives Transformers' loss on the whole held-out text
  // (docs/benchmarks/perplexity.md).
  constexpr double kRecorded = 3.17505;
  const Perplexity one = measure("fp16", 256, 512, 4), other = measure("fp16", 100, 512, 4);
  CHECK(one.nll == Approx(kRecorded).epsilon(0.002));
  CHECK(other.nll == Approx(kRecorded).epsilon(0.002));
  CHECK(mean_change(one, other) < 1e-3);
}

TEST_CASE("Fewer bits change more, and the perplexity stays near that of fp16", "[long]") {
  // Chunks of one token read the history from the store, as decoding does.
  constexpr int kWindow = 256, kWindows = 4;
  const Perplexity fp16 = measure("fp16", 256, kWindow, kWindows);
  const Perplexity fp8 = measure("fp8", 1, kWindow, kWindows);
  const Perplexity kivi4 = measure("kivi4", 1, kWindow, kWindows);
  const Perplexity kivi2 = measure("kivi2", 1, kWindow, kWindows);
  CAPTURE(fp16.nll, fp8.nll, kivi4.nll, kivi2.nll);
  const double fp8_change = mean_change(fp8, fp16), kivi4_change = mean_change(kivi4, fp16),
               kivi2_change = mean_change(kivi2, fp16);
  CAPTURE(fp8_change, kivi4_change, kivi2_change);
  CHECK(fp8_change > 1e-4);
  CHECK(fp8_change < 0.06);
  CHECK(kivi4_change > 1e-3);
  CHECK(kivi4_change < 0.03);
  CHECK(kivi2_change > 2 * kivi4_change);
  CHECK(kivi2_change < 0.2);
  CHECK(std::abs(kivi4.nll - fp16.nll) < 0.01);
  CHECK(std::abs(kivi2.nll - fp16.nll) < 0.05);
}

// Transformers' loop ("Perplexity of fixed-length models"), line by line: labels of all but the
// last trg_len ids are -100, the model shifts labels by one and takes the mean of what is left, and
// the mean is weighted by the valid labels less one. logprob(b, e, i): log p(id i | ids b .. i -
// 1).
double transformers_perplexity(int64_t seq_len, int64_t max_length, int64_t stride,
                               const std::function<float(int64_t, int64_t)>& logprob) {
  double nll_sum = 0;
  int64_t n_tokens = 0, prev_end_loc = 0;
  for (int64_t begin_loc = 0; begin_loc < seq_len; begin_loc += stride) {
    const int64_t end_loc = std::min(begin_loc + max_length, seq_len);
    const int64_t trg_len = end_loc - prev_end_loc;
    std::vector<int64_t> labels;  // -100: ignored
    for (int64_t i = begin_loc; i < end_loc; ++i)
      labels.push_back(i < end_loc - trg_len ? -100 : i);
    double loss = 0;
    int64_t valid_after_shift = 0, num_valid_tokens = 0;
    for (size_t i = 0; i < labels.size(); ++i) {
      if (labels[i] == -100) continue;
      ++num_valid_tokens;
      if (i == 0) continue;  // nothing predicts the window's first id
      loss -= double(logprob(begin_loc, labels[i]));
      ++valid_after_shift;
    }
    loss /= double(valid_after_shift);
    const int64_t num_loss_tokens = num_valid_tokens - 1;
    if (num_loss_tokens > 0) nll_sum += loss * double(num_loss_tokens);
    n_tokens += num_loss_tokens;
    prev_end_loc = end_loc;
    if (end_loc == seq_len) break;
  }
  return std::exp(nll_sum / double(n_tokens));
}

TEST_CASE("Strided perplexity is Transformers' arithmetic for every length and stride", "[long]") {
  // Any numbers will do that depend on the window and on the id.
  const auto logprob = [](int64_t begin, int64_t id) {
    return -0.1f - float((begin * 7919 + id * 104729) % 1000) / 250;
  };
  for (const int window : {2, 3, 16}) {
    for (int stride = 1; stride <= window; ++stride) {
      for (const int64_t ids : {2, 3, 15, 16, 17, 31, 32, 33, 50}) {
        if (window == 2 && stride == 1 && ids == 2) continue;  // one window: the next case has it
        const auto windows = strided_windows(ids, window, stride, 0);
        std::vector<std::vector<float>> logprobs;
        for (const StridedWindow& w : windows) {
          std::vector<float>& row = logprobs.emplace_back();
          for (int64_t i = w.begin + 1; i < w.end; ++i) row.push_back(logprob(w.begin, i));
        }
        // One id alone in the last window: its mean is 0 / 0 there, and has no weight here.
        const Perplexity ours = strided_perplexity(windows, logprobs);
        const double theirs = transformers_perplexity(ids, window, stride, logprob);
        CAPTURE(window, stride, ids);
        CHECK(ours.perplexity == Approx(theirs).epsilon(1e-6));
        CHECK(windows.back().end == ids);
      }
    }
  }
}

TEST_CASE("Strided windows predict each id once") {
  CHECK(strided_windows(10, 4, 2, 0) ==
        std::vector<StridedWindow>{{0, 4, 4}, {2, 6, 2}, {4, 8, 2}, {6, 10, 2}});
  CHECK(strided_windows(9, 4, 4, 0) == std::vector<StridedWindow>{{0, 4, 4}, {4, 8, 4}, {8, 9, 1}});
  CHECK(strided_windows(10, 4, 2, 2).size() == 2);
  CHECK(strided_windows(3, 4, 2, 0) == std::vector<StridedWindow>{{0, 3, 3}});
}

}  // namespace kivi
