// SPDX-License-Identifier: Apache-2.0
// ChoiceText: the text of one choice out of token events; alignment of tokens, offsets and text.
#include "engine/serving/choice_text.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <random>

#include "base/utf8.h"
#include "tests/serving/tales_tokenizer.h"
#include "tests/text/texts.h"

using namespace kivi;

namespace {

ChoiceOptions options(std::vector<std::string> stop = {}) {
  ChoiceOptions o;
  o.tokenizer = &tales_tokenizer();
  o.show_logprobs = true;
  o.stop = std::make_shared<const StopStrings>(std::move(stop));
  return o;
}

ChoiceText make(ChoiceOptions o, std::vector<int32_t> prompt = {1, 2421}) {
  return ChoiceText(std::make_shared<const ChoiceOptions>(std::move(o)),
                    std::make_shared<const std::vector<int32_t>>(std::move(prompt)));
}

TokenEvent token(int32_t id, bool last = false) {
  TokenEvent e;
  e.id = id;
  e.logprob = -float(id % 97) / 8;
  if (last) e.finish = FinishReason::length;
  return e;
}

// Feeds all ids, the last with finish length; a chunk for each event.
std::vector<TextChunk> feed(ChoiceText& choice, const std::vector<int32_t>& ids) {
  std::vector<TextChunk> chunks;
  for (size_t i = 0; i < ids.size(); ++i) {
    chunks.emplace_back();
    choice.read(token(ids[i], i + 1 == ids.size()), chunks.back());
  }
  return chunks;
}

struct Joined {
  std::string text;
  std::vector<ChunkToken> tokens;
};

Joined join(const std::vector<TextChunk>& chunks) {
  Joined all;
  for (const TextChunk& chunk : chunks) {
    REQUIRE(is_valid_utf8(chunk.text));
    all.text += chunk.text;
    all.tokens.insert(all.tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
  }
  return all;
}

// `text` from its character `offset` on.
std::string_view from_character(std::string_view text, int64_t offset) {
  size_t i = 0;
  for (int64_t seen = -1; i < text.size(); ++i) {
    seen += (text[i] & 0xC0) != 0x80;
    if (seen == offset) break;
  }
  return text.substr(i);
}

std::vector<int32_t> random_ids(std::mt19937& random, size_t count) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < count; ++i) {
    // Bytes are likelier than their share, so that characters are cut and completed; a few
    // specials.
    ids.push_back(random() % 3 ? 3 + int32_t(random() % 256) : int32_t(random() % 4096));
  }
  return ids;
}

}  // namespace

TEST_CASE("streamed text is the decoded text, whatever the ids and however events are coalesced") {
  std::mt19937 random(5);
  for (int round = 0; round < 500; ++round) {
    const auto ids = random_ids(random, 1 + random() % 40);
    ChoiceText choice = make(options(), {1});  // BOS alone: the text starts afresh
    std::vector<TextChunk> chunks(1);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (random() % 2) chunks.emplace_back();
      choice.read(token(ids[i], i + 1 == ids.size()), chunks.back());
    }
    const Joined all = join(chunks);
    REQUIRE(all.text == tales_tokenizer().decode(ids, true));
    REQUIRE(all.tokens.size() == ids.size());
    REQUIRE(choice.completion_tokens() == int(ids.size()));
    for (size_t i = 0; i < ids.size(); ++i) {
      REQUIRE(all.tokens[i].id == ids[i]);
      REQUIRE(is_valid_utf8(all.tokens[i].text));
    }
  }
}

TEST_CASE("Detokenizer: every prefix streams what its own decoding begins with") {
  std::mt19937 random(6);
  for (int round = 0; round < 200; ++round) {
    const auto ids = random_ids(random, 30);
    for (const bool skip : {true, false}) {
      Detokenizer detokenizer(tales_tokenizer(), skip);
      std::string streamed;
      for (size_t n = 0; n < ids.size(); ++n) {
        detokenizer.push(ids[n], streamed);
        std::string ended = streamed;
        Detokenizer(detokenizer).flush(ended);
        REQUIRE(ended == tales_tokenizer().decode(std::span(ids).first(n + 1), skip));
        REQUIRE(is_valid_utf8(streamed));
      }
    }
  }
}

TEST_CASE("a token goes out with the chunk that completes its text, at its text's offset") {
  for (const std::string& text : testing::awkward_texts()) {
    auto ids = tales_tokenizer().encode(text, false);
    if (ids.empty()) continue;
    ids.push_back(2);
    ChoiceText choice = make(options(), {1});
    const auto chunks = feed(choice, ids);
    std::string so_far;
    for (const TextChunk& chunk : chunks) {
      so_far += chunk.text;
      for (const ChunkToken& t : chunk.tokens) {
        if (t.text.starts_with("bytes:") || t.id == 2) continue;
        INFO(text << " token " << t.text);
        REQUIRE(from_character(so_far, t.text_offset).starts_with(t.text));
      }
    }
    REQUIRE(so_far == text);
    REQUIRE(join(chunks).tokens.size() == ids.size());
  }
}

TEST_CASE("output goes on from the prompt: its first space stays, unless there is no text before") {
  const int32_t king = *tales_tokenizer().token_id("\u2581king");
  const auto text_after = [&](std::vector<int32_t> prompt, bool echo) {
    ChoiceOptions o = options();
    o.echo = echo;
    ChoiceText choice = make(o, std::move(prompt));
    return join(feed(choice, {king, king})).text;
  };
  CHECK(text_after({1, king}, false) == " king king");
  CHECK(text_after({1}, false) == "king king");
  CHECK(text_after({1, king}, true) == "king king king");
  // A prompt that ends inside a character: its text ends in U+FFFD, with and without echo alike.
  const int32_t byte = *tales_tokenizer().token_id("<0xE4>");
  CHECK(text_after({1, king, byte}, true) == "king\uFFFD king king");
}

TEST_CASE("echo: the prompt's tokens first, with their logprobs but for the first") {
  ChoiceOptions o = options();
  o.echo = o.show_prompt_logprobs = true;
  const auto prompt = tales_tokenizer().encode("a \U0001F44D king", true);
  ChoiceText choice = make(o, prompt);
  TokenEvent scores;
  for (size_t i = 1; i < prompt.size(); ++i) {
    // The likeliest token is another one for odd i.
    SampledToken s{.id = prompt[i], .logprob = -float(i)};
    s.top = {{i % 2 ? 500 : prompt[i], i % 2 ? -0.5f : -float(i)}};
    scores.prompt_logprobs.push_back(s);
  }
  TextChunk chunk;
  choice.read(scores, chunk);
  CHECK(chunk.text == "a \U0001F44D king");
  REQUIRE(chunk.tokens.size() == prompt.size());
  CHECK(chunk.prompt_tokens == int(prompt.size()));
  CHECK(!chunk.tokens[0].logprob);
  CHECK(chunk.tokens[0].top.empty());
  CHECK(chunk.tokens[0].text == "<s>");
  for (size_t i = 1; i < prompt.size(); ++i) {
    const ChunkToken& t = chunk.tokens[i];
    CHECK(t.logprob == -float(i));
    if (i % 2) {
      REQUIRE(t.top.size() == 2);
      CHECK(t.top[0].second.id == 500);
      CHECK(t.top[1].second.id == prompt[i]);
      CHECK(t.top[1].second.logprob == *t.logprob);
    } else {
      REQUIRE(t.top.size() == 1);
      CHECK(t.top[0].second.logprob == *t.logprob);
      CHECK(t.top[0].first == t.text);
    }
  }
  // The four bytes of the emoji have names of their own, and the offset of the one character.
  std::vector<std::string> names;
  for (const ChunkToken& t : chunk.tokens) {
    if (t.text.starts_with("bytes:")) {
      names.push_back(t.text);
      CHECK(t.text_offset == 2);
    }
  }
  CHECK(names ==
        std::vector<std::string>{"bytes:\\xf0", "bytes:\\x9f", "bytes:\\x91", "bytes:\\x8d"});

  TextChunk next;
  choice.read(token(2421, true), next);
  REQUIRE(next.tokens.size() == 1);
  CHECK(next.prompt_tokens == 0);
  CHECK(next.tokens[0].text_offset == utf8_length(chunk.text));
}

TEST_CASE("a stop string across tokens cuts text; tokens and usage end with the completing one") {
  const auto ids = tales_tokenizer().encode("The king said: stop here now and for ever", false);
  for (const bool include : {false, true}) {
    ChoiceOptions o = options({"p here n", "never there"});
    o.include_stop_str_in_output = include;
    ChoiceText choice = make(o, {1});
    const auto chunks = feed(choice, ids);
    const Joined all = join(chunks);
    const std::string expected = include ? "The king said: stop here n" : "The king said: sto";
    CHECK(all.text == expected);
    // The completing token: the first whose text reaches the end of the match.
    size_t count = 0;
    while (tales_tokenizer().decode(std::span(ids).first(count), true).find("p here n") ==
           std::string::npos) {
      ++count;
    }
    CHECK(choice.completion_tokens() == int(count));
    CHECK(all.tokens.size() == count);
    CHECK(choice.ended());
    int finals = 0;
    for (const TextChunk& chunk : chunks) {
      if (!chunk.finish) continue;
      ++finals;
      CHECK(chunk.finish == FinishReason::stop);
      CHECK(std::get<std::string>(chunk.stop_reason) == "p here n");
    }
    CHECK(finals == 1);
    for (const ChunkToken& t : all.tokens) CHECK(t.text_offset <= utf8_length(all.text));
  }
}

TEST_CASE("random stop strings: text is cut where they match, and tokens stay with their text") {
  std::mt19937 random(8);
  const std::string alphabet[] = {"a", "b", " ", "\u00E9", "\U0001F44D"};
  for (int round = 0; round < 2000; ++round) {
    const auto word = [&](size_t longest) {
      std::string s;
      for (size_t n = 1 + random() % longest; n > 0; --n) s += alphabet[random() % 5];
      return s;
    };
    const std::vector<std::string> stop = {word(4), word(3)};
    std::string text = word(25);
    const auto ids = tales_tokenizer().encode(text, false);
    ChoiceText choice = make(options(stop), {1});
    const auto chunks = feed(choice, ids);
    const Joined all = join(chunks);

    StopMatcher matcher(std::make_shared<const StopStrings>(stop), false);
    std::string expected;
    const bool matched = matcher.push(text, expected);
    matcher.flush(expected);
    INFO("round " << round);
    REQUIRE(all.text == expected);
    REQUIRE(int(all.tokens.size()) == choice.completion_tokens());
    REQUIRE(matched == (choice.completion_tokens() < int(ids.size()) ||
                        chunks.back().finish == FinishReason::stop));
    // At each moment the tokens that are out are those whose text is out.
    std::string so_far;
    for (const TextChunk& chunk : chunks) {
      so_far += chunk.text;
      for (const ChunkToken& t : chunk.tokens) {
        if (t.text.starts_with("bytes:") || chunk.finish) continue;
        REQUIRE(from_character(so_far, t.text_offset).starts_with(t.text));
      }
    }
  }
}

TEST_CASE("min_tokens: stop strings are not looked for in the text of the first tokens") {
  const auto ids = tales_tokenizer().encode("one two one two one", false);
  ChoiceOptions o = options({"one"});
  o.min_tokens = 3;
  ChoiceText choice = make(o, {1});
  const Joined all = join(feed(choice, ids));
  CHECK(choice.completion_tokens() > 3);
  CHECK(all.text.starts_with(tales_tokenizer().decode(std::span(ids).first(3), true)));
  CHECK(all.text.size() < std::string("one two one two one").size());
}

TEST_CASE("the token that ends a text counts, and has text only if stop strings are included") {
  const int32_t king = *tales_tokenizer().token_id("\u2581king");
  for (const bool include : {false, true}) {
    for (const bool listed : {false, true}) {
      ChoiceOptions o = options();
      o.include_stop_str_in_output = include;
      if (listed) o.stop_token_ids = {7, king};
      ChoiceText choice = make(o);
      TextChunk chunk;
      choice.read(token(2421), chunk);
      TokenEvent last = token(king);
      last.finish = FinishReason::stop;
      last.stopped_by_token = true;
      choice.read(last, chunk);
      CHECK(chunk.text == tales_tokenizer().token_bytes(2421, true) + (include ? " king" : ""));
      CHECK(chunk.tokens.size() == 2);
      CHECK(choice.completion_tokens() == 2);
      CHECK(chunk.finish == FinishReason::stop);
      CHECK((chunk.stop_reason.index() == 1) == listed);  // EOS gives no reason, as in vLLM
    }
  }
}

TEST_CASE("held text and tokens come out at the end, whatever ends it") {
  const int32_t king = *tales_tokenizer().token_id("\u2581king");
  for (const FinishReason reason :
       {FinishReason::length, FinishReason::abort, FinishReason::error}) {
    ChoiceText choice = make(options({" king of"}));
    TextChunk chunk;
    choice.read(token(king), chunk);
    CHECK(chunk.text.empty());
    CHECK(chunk.tokens.empty());
    TokenEvent last;
    last.finish = reason;
    if (reason == FinishReason::error) last.error = Error{ErrorCode::internal, "a step failed"};
    choice.read(last, chunk);
    CHECK(chunk.text == " king");
    CHECK(chunk.tokens.size() == 1);
    CHECK(chunk.finish == reason);
    CHECK(chunk.error.has_value() == (reason == FinishReason::error));
    TextChunk after;
    choice.read(token(king), after);
    CHECK(after.tokens.empty());
  }
}

TEST_CASE("skip_special_tokens decides about the text, never about tokens") {
  for (const bool skip : {true, false}) {
    ChoiceOptions o = options();
    o.skip_special_tokens = skip;
    ChoiceText choice = make(o);
    const Joined all = join(feed(choice, {2421, 2, 2421}));
    CHECK(all.tokens.size() == 3);
    CHECK(all.tokens[1].text == "</s>");
    CHECK((all.text.find("</s>") != std::string::npos) == !skip);
  }
}
