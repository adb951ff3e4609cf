// SPDX-License-Identifier: Apache-2.0
#include "study/eval_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

namespace kivi {

namespace {

using Json = nlohmann::ordered_json;

// JSON has no infinity: a figure that is infinite is null in the results file.
double number(const Json& v) { return v.is_number() ? v.get<double>() : HUGE_VAL; }

struct Column {
  std::string title;
  // A cell's text; none where the cell lacks it.
  std::function<std::optional<std::string>(const Json& cell)> text;
};

// figures[section][name], by `format`.
Column figure(std::string title, std::string section, std::string name, std::string format) {
  return {std::move(title), [=](const Json& cell) -> std::optional<std::string> {
            if (!cell.contains(section)) return std::nullopt;
            return fmt::format(fmt::runtime(format), number(cell[section][name]));
          }};
}

// The sum of a count over lengths and depths, of the sum of trials.
Column passkeys(std::string title, std::string name) {
  return {std::move(title), [=](const Json& cell) -> std::optional<std::string> {
            if (!cell.contains("passkey") || !cell["passkey"][0].contains(name))
              return std::nullopt;
            int count = 0, trials = 0;
            for (const Json& score : cell["passkey"]) {
              count += score[name].get<int>();
              trials += score["trials"].get<int>();
            }
            return fmt::format("{}/{}", count, trials);
          }};
}

std::vector<Column> columns_of(double first_perplexity) {
  return {{"format", [](const Json& c) { return std::optional(c["format"].get<std::string>()); }},
          {"bytes/token",
           [](const Json& c) {
             return std::optional(fmt::format("{:.0f}", number(c["bytes_per_token"])));
           }},
          figure("tokens", "perplexity", "tokens", "{:.0f}"),
          figure("nll", "perplexity", "nll", "{:.5f}"),
          figure("perplexity", "perplexity", "perplexity", "{:.4f}"),
          {"x first",
           [=](const Json& c) {
             return std::optional(
                 fmt::format("{:.4f}", number(c["perplexity"]["perplexity"]) / first_perplexity));
           }},
          figure("strided", "strided", "perplexity", "{:.4f}"),
          figure("KL mean", "divergence", "kl_mean", "{:.3g}"),
          figure("+-", "divergence", "kl_error", "{:.2g}"),
          figure("rise", "divergence", "rise", "{:.4f}"),
          figure("+-", "divergence", "rise_error", "{:.2g}"),
          figure("KL p99", "divergence", "kl_p99", "{:.3g}"),
          figure("top-1", "divergence", "top1_agreement", "{:.4f}"),
          figure("change", "divergence", "nll_change", "{:.4f}"),
          passkeys("key found", "found"),
          passkeys("likeliest", "likeliest"),
          figure("acc", "choices", "accuracy", "{:.3f}"),
          figure("acc norm", "choices", "accuracy_normalized", "{:.3f}"),
          {"seconds", [](const Json& c) {
             return std::optional(fmt::format("{:.1f}", number(c["seconds"])));
           }}};
}

}  // namespace

std::string eval_table(const std::vector<EvalFigures>& cells) {
  std::vector<Json> measured;
  std::ranges::copy_if(cells, std::back_inserter(measured),
                       [](const Json& c) { return !c.contains("refused"); });
  std::vector<std::string> lines(measured.size() + 1);
  if (measured.empty()) lines.clear();
  for (const Column& column : measured.empty()
                                  ? std::vector<Column>{}
                                  : columns_of(number(measured[0]["perplexity"]["perplexity"]))) {
    std::vector<std::string> texts = {column.title};
    bool any = false;
    for (const Json& cell : measured) {
      const std::optional<std::string> text = column.text(cell);
      any = any || text.has_value();
      texts.push_back(text.value_or("-"));
    }
    if (!any) continue;
    const size_t width = std::ranges::max(texts, {}, &std::string::size).size();
    for (size_t i = 0; i < texts.size(); ++i)
      lines[i] += lines[i].empty() ? fmt::format("{:<{}}", texts[i], width)
                                   : fmt::format("  {:>{}}", texts[i], width);
  }
  std::string table;
  for (const std::string& line : lines) table += line + "\n";
  for (const Json& cell : cells)
    if (cell.contains("refused"))
      table += fmt::format("{}: refused: {}\n", cell["format"].get<std::string>(),
                           cell["refused"].get<std::string>());
  return table;
}

Json eval_json(const EvalOptions& o, const std::vector<EvalFigures>& cells) {
  return {{"kind", "eval"},
          {"model", o.engine.model},
          {"text", o.text},
          {"window", o.window},
          {"prefill", o.prefill == PrefillMode::exact ? "exact" : "stream"},
          {"results", cells}};
}

}  // namespace kivi
