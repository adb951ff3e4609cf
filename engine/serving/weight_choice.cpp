// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/weight_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/model/weight_quantizer.h"

namespace kivi {

namespace {

Error refused(const EngineConfig& config, ErrorCode code, const std::string& why) {
  return Error{code, fmt::format("quantization is {}, {}", config.quantization, why),
               "quantization"};
}

// "70 Q4_1, 2 Q8_0"
std::string counted(const std::map<std::string, int>& counts) {
  std::string text;
  for (const auto& [name, count] : counts)
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count, name);
  return text;
}

// The checkpoint's formats, as far as the device multiplies them. Random numbers come in the
// formats that rows can be quantized to.
void keep_formats(const EngineConfig& config, const Backend& backend, const ModelConfig& model,
                  WeightChoice& choice) {
  std::map<std::string, int> plain;
  for (const auto& [name, format] : model.formats) {
    const bool can_make =
        config.load_format != "dummy" ||
        (!format.reordered && (format.kind == WeightKind::int4 || format.kind == WeightKind::e4m3));
    if (config.quantization != "none" && can_make && backend.multiplies(format))
      choice.formats.emplace(name, format);
    else
      ++plain[name_of(format)];
  }
  if (!plain.empty())
    choice.note = fmt::format(
        "{} matrices are dequantized{}", counted(plain),
        config.quantization == "none"
            ? ""
            : (config.load_format == "dummy" ? " (random numbers)" : " on this device"));
}

}  // namespace

Result<WeightChoice> choose_weights(const EngineConfig& config, const Backend& backend,
                                    const ModelConfig& model, DType dtype, int64_t rows) {
  WeightChoice choice;
  if (config.quantization == "auto" || config.quantization == "none") {
    keep_formats(config, backend, model, choice);
  } else {
    const WeightFormat format = config.quantization == "fp8"
                                    ? WeightFormat{WeightKind::e4m3}
                                    : WeightFormat{WeightKind::int4, kInt4Group};
    if (!model.formats.empty())
      return refused(
          config, ErrorCode::invalid,
          fmt::format("but the checkpoint is quantized already ({}): must be auto or none",
                      name_of(model.formats.begin()->second)));
    if (!backend.multiplies(format))
      return refused(config, ErrorCode::unsupported,
                     fmt::format("which device {} does not multiply: must be auto or none",
                                 backend.info().kind));
    choice.formats = layer_formats(model.spec, model.names, format);
  }
  choice.bytes = weight_bytes(model.spec, model.names, dtype, choice.formats);
  choice.product_scratch =
      product_scratch_bytes(backend, model.spec, model.names, choice.formats, rows);
  return choice;
}

std::string describe(const WeightBytes& bytes) {
  std::vector<std::pair<int64_t, std::string>> sorted;
  for (const auto& [name, count] : bytes.by_format) sorted.emplace_back(-count, name);
  std::sort(sorted.begin(), sorted.end());
  std::string text;
  for (const auto& [count, name] : sorted)
    text +=
        fmt::format("{}{} {:.1f} MiB", text.empty() ? "" : ", ", name, double(-count) / (1 << 20));
  return text;
}

}  // namespace kivi
