// SPDX-License-Identifier: Apache-2.0
#include "server/openai/field_docs.h"

namespace kivi {
namespace {

constexpr std::string_view kObject = R"({"type":"object"})";
constexpr std::string_view kObjects = R"({"type":"array","items":{"type":"object"}})";
constexpr std::string_view kString = R"({"type":"string"})";
constexpr std::string_view kPenalty = R"({"type":"number","minimum":-2,"maximum":2})";
constexpr std::string_view kMessages =
    R"({"type":"array","minItems":1,"items":{"type":"object","required":["role"],)"
    R"("properties":{"role":{"type":"string"},"content":{}}}})";
constexpr std::string_view kToolChoice =
    R"({"anyOf":[{"enum":["auto","none","required"]},{"type":"object"}]})";
constexpr std::string_view kSchemaOrText =
    R"({"anyOf":[{"type":"object"},{"type":"boolean"},{"type":"string"}]})";
constexpr std::string_view kNonEmpty = R"({"type":"string","minLength":1})";

constexpr std::string_view kPrompts =
    R"({"anyOf":[{"type":"string"},{"type":"array","minItems":1,"items":{"type":"string"}},)"
    R"({"type":"array","minItems":1,"items":{"type":"integer","minimum":0}},)"
    R"({"type":"array","minItems":1,"items":{"type":"array","minItems":1,)"
    R"("items":{"type":"integer","minimum":0}}}]})";

constexpr std::string_view kTexts =
    R"({"anyOf":[{"type":"string"},{"type":"array","minItems":1,"items":{"type":"string"}}]})";
constexpr std::string_view kDocuments =
    R"({"type":"array","minItems":1,"items":{"anyOf":[{"type":"string"},)"
    R"({"type":"object","required":["text"],"properties":{"text":{"type":"string"}}}]}})";

struct Row {
  FieldDoc doc;
  std::string_view place = "";  // the one endpoint of the row; "": all others
};

// clang-format off
constexpr Row kRows[] = {
    {{"model", "A name of the served model", ""}},
    {{"prompt", "The text or the token ids to continue", kPrompts}},
    {{"prompt", "The text to turn into token ids, instead of messages", kString}, "/tokenize"},
    {{"messages", "The chat so far", kMessages}},
    {{"tools", "The tools that the model may call", kObjects}},
    {{"documents", "Documents that the chat template shows to the model", kObjects}},
    {{"tool_choice", "Whether and which tools are called", kToolChoice}},
    {{"tool_choice", "Whether and which tools are called", R"({"type":"object","required":["type"],"properties":{"type":{"enum":["auto","any","none","tool"]},"name":{"type":"string"},"disable_parallel_tool_use":{"type":"boolean"}}})"}, "/v1/messages"},
    {{"parallel_tool_calls", "False: at most one call", ""}},
    {{"response_format", "What the text must be", R"({"type":"object","required":["type"],"properties":{"type":{"enum":["text","json_object","json_schema"]},"json_schema":{"type":"object","required":["schema"]}}})"}},
    {{"structured_outputs", "What the text must be: json, regex, choice, grammar or json_object", kObject}},
    {{"guided_json", "A JSON Schema that the text must fit", kSchemaOrText}},
    {{"guided_regex", "A regular expression of the text", kNonEmpty}},
    {{"guided_choice", "The texts of which the answer is one", R"({"type":"array","minItems":1,"maxItems":4096,"items":{"type":"string","minLength":1}})"}},
    {{"guided_grammar", "A grammar of the text", kNonEmpty}},
    {{"chat_template_kwargs", "More variables of the chat template", kObject}},
    {{"add_generation_prompt", "End the prompt where an answer begins", ""}},
    {{"continue_final_message", "Continue the last message; needs add_generation_prompt false", ""}},
    {{"reasoning_effort", "How much to reason, for chat templates that know this", ""}},
    {{"max_tokens", "Tokens to generate at most", ""}},
    {{"max_completion_tokens", "Another name of max_tokens", ""}},
    {{"temperature", "0 is greedy; default: the model's, else 1", R"({"type":"number","minimum":0,"maximum":100})"}},
    {{"top_p", "Sample from the smallest set with this share of the probability", R"({"type":"number","exclusiveMinimum":0,"maximum":1})"}},
    {{"top_k", "Sample from this many likeliest tokens; 0 or -1: off", ""}},
    {{"min_p", "Drop tokens below this share of the likeliest one's probability", R"({"type":"number","minimum":0,"exclusiveMaximum":1})"}},
    {{"seed", "The same seed gives the same text", R"({"type":"integer"})"}},
    {{"n", "Choices for each prompt", ""}},
    {{"best_of", "Compute this many choices and return the n likeliest", ""}},
    {{"stop", "Strings that end a choice: at most 64, of 1 to 1024 bytes each", ""}},
    {{"stop_sequences", "Strings that end the message: at most 64, of 1 to 1024 bytes each", R"({"type":"array","maxItems":64,"items":{"type":"string","minLength":1}})"}},
    {{"include_stop_str_in_output", "Keep the stop string in the text", ""}},
    {{"stop_token_ids", "Tokens that end a choice, at most 256", ""}},
    {{"min_tokens", "Generate at least this many tokens", ""}},
    {{"ignore_eos", "Generate beyond the end-of-text token", ""}},
    {{"presence_penalty", "Subtract this from the logits of tokens in the output", kPenalty}},
    {{"frequency_penalty", "Subtract this for each time that a token is in the output", kPenalty}},
    {{"repetition_penalty", "Make tokens of prompt and output less likely by this factor", R"({"type":"number","exclusiveMinimum":0,"maximum":100})"}},
    {{"logit_bias", "Map token ids to numbers that are added to their logits", R"({"type":"object","maxProperties":1024,"additionalProperties":{"type":"number","minimum":-100,"maximum":100}})"}},
    {{"logprobs", "Return log probabilities", ""}},
    {{"top_logprobs", "Return the log probabilities of this many likeliest tokens; needs logprobs true", ""}},
    {{"echo", "Return the prompt too", ""}},
    {{"stream", "Send the answer as it comes, as server-sent events", ""}},
    {{"stream", "Send the answer as it comes, as server-sent events", R"({"type":"boolean"})"}, "/v1/messages"},
    {{"stream_options", "Settings of a stream", R"({"type":"object","properties":{"include_usage":{"type":"boolean"},"continuous_usage_stats":{"type":"boolean"}}})"}},
    {{"add_special_tokens", "Put the tokenizer's BOS token before a text", ""}},
    {{"skip_special_tokens", "Leave special tokens out of the text", ""}},
    {{"truncate_prompt_tokens", "Keep this many tokens of the prompt; -1: all", ""}},
    {{"truncation_side", "Where a prompt is cut", R"({"enum":["left","right"]})"}},
    {{"allowed_token_ids", "Sample only these tokens", ""}},
    {{"bad_words", "Do not write these words", ""}},
    {{"return_tokens_as_token_ids", "Name tokens in logprobs by id", ""}},
    {{"return_token_ids", "Return the ids of prompt and answer", ""}},
    {{"return_token_strs", "Return the spelling of each token", ""}},
    {{"tokens", "The token ids to turn into text", R"({"type":"array","items":{"type":"integer","minimum":0}})"}},
    {{"request_id", "1 to 128 printable ASCII characters; the id of the reply contains it", ""}},
    {{"priority", "Lower values go first, with --scheduling-policy priority", ""}},
    {{"cache", "False: reuse no tokens of earlier requests, and keep none of these", ""}},
    {{"cache_salt", "Only requests of the same salt share tokens", ""}},
    {{"user", "Has no effect", ""}},
    {{"system", "The system prompt", R"({"anyOf":[{"type":"string"},{"type":"array","items":{"type":"object"}}]})"}},
    {{"thinking", "Turn reasoning on or off, for chat templates that know this", R"({"type":"object","required":["type"],"properties":{"type":{"enum":["enabled","adaptive","disabled"]}}})"}},
    {{"output_config", "format: a JSON Schema that the text must fit; effort", kObject}},
    {{"output_format", "The older name of output_config.format", kObject}},
    {{"metadata", "Has no effect on the answer", kObject}},
    {{"input", "A text, or the items of the conversation so far", R"({"anyOf":[{"type":"string"},{"type":"array","minItems":1,"items":{"type":"object"}}]})"}},
    {{"input", "The texts or the token ids to turn into vectors", kPrompts}, "/v1/embeddings"},
    {{"encoding_format", "base64: little-endian 32-bit floats", R"({"enum":["float","base64"]})"}},
    {{"pooling", "The hidden state of the last token, or the mean of all", R"({"enum":["last","mean"]})"}},
    {{"normalize", "False: embeddings keep their length", ""}},
    {{"text_1", "One text, or as many as text_2 has", ""}},
    {{"queries", "Another name of text_1", kTexts}},
    {{"text_2", "The texts to compare with text_1", ""}},
    {{"documents", "Another name of text_2", kTexts}, "/score"},
    {{"documents", "Another name of text_2", kTexts}, "/v1/score"},
    {{"query", "The text that the documents are compared with", ""}},
    {{"documents", "Texts, or objects with a text", kDocuments}, "/rerank"},
    {{"documents", "Texts, or objects with a text", kDocuments}, "/v1/rerank"},
    {{"documents", "Texts, or objects with a text", kDocuments}, "/v2/rerank"},
    {{"top_n", "Return this many documents; 0: all", ""}},
    {{"return_documents", "False: leave the texts out of the reply", ""}},
    {{"instructions", "The system prompt", ""}},
    {{"max_output_tokens", "Tokens to generate at most", R"({"type":"integer","minimum":1})"}},
    {{"text", "format: what the text must be", kObject}},
    {{"reasoning", "effort: how much to reason, for chat templates that know this", kObject}},
    {{"safety_identifier", "Has no effect", ""}},
    {{"prompt_cache_key", "Has no effect", ""}},
};
// clang-format on

}  // namespace

const FieldDoc* find_field_doc(std::string_view name, std::string_view place) {
  const FieldDoc* common = nullptr;
  for (const Row& row : kRows) {
    if (row.doc.name != name) continue;
    if (row.place.empty())
      common = &row.doc;
    else if (row.place == place)
      return &row.doc;
  }
  return common;
}

}  // namespace kivi
