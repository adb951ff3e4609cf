// SPDX-License-Identifier: Apache-2.0
#include "engine/model/quantization.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string_view>

#include "engine/model/files/packed_rows.h"
#include "engine/model/weights.h"
#include "kernels/weight_codec.h"

namespace kivi {

using nlohmann::json;

namespace {

// Reads one object of the configuration and keeps the first mistake.
class ConfigReader {
 public:
  ConfigReader(std::string file, std::string path, const json& object)
      : file_(std::move(file)), path_(std::move(path)), object_(object) {}

  // The value under a key; null where it is absent or null.
  const json& value(const char* key) const {
    static const json null;
    const auto found = object_.find(key);
    return found == object_.end() ? null : *found;
  }
  std::string text(const char* key, const std::string& fallback = "") const {
    const json& found = value(key);
    return found.is_string() ? found.get<std::string>() : found.is_null() ? fallback : found.dump();
  }
  int64_t integer(const char* key, int64_t fallback) const {
    const json& found = value(key);
    return found.is_number_integer() ? found.get<int64_t>() : fallback;
  }
  bool boolean(const char* key, bool fallback) const {
    const json& found = value(key);
    return found.is_boolean() ? found.get<bool>() : fallback;
  }
  // A key whose presence would change the numbers: must be absent, null, false or empty.
  void must_be_unset(const char* key) {
    const json& found = value(key);
    if (!found.is_null() && found != json(false) && !found.empty()) refuse(key, "must be absent");
  }
  void must_be(const char* key, const json& wanted) {
    if (value(key) != wanted) refuse(key, "supported is " + wanted.dump());
  }
  void refuse(const std::string& key, const std::string& expected) {
    if (error_) return;
    const auto found = object_.find(key);
    error_ = Error{ErrorCode::unsupported,
                   fmt::format("{}: {}.{} is {}, {}", file_, path_, key,
                               found == object_.end() ? "absent" : found->dump(), expected),
                   "quantization_config"};
  }
  std::vector<std::string> strings(const char* key) {
    std::vector<std::string> list;
    const json& found = value(key);
    if (found.is_null()) return list;
    if (!found.is_array()) refuse(key, "must be a list of strings");
    for (const json& entry : found) {
      if (!entry.is_string()) {
        refuse(key, "must be a list of strings");
        break;
      }
      list.push_back(entry.get<std::string>());
    }
    return list;
  }
  Status status() const { return error_ ? Status(*error_) : ok_status(); }

 private:
  std::string file_, path_;
  const json& object_;
  std::optional<Error> error_;
};

// Columns that share a scale, of what a config calls group_size; -1 and null are whole rows.
int group_of(ConfigReader& config, const char* key) {
  const int64_t size = config.integer(key, -1);
  if (size == -1) return 0;
  if (size <= 0 || size % kWeightBlock != 0 || size > 1 << 20)
    config.refuse(key, "supported are multiples of 32 and -1");
  return int(size);
}

// Patterns of literals, "." and ".*" alone: what lists of modules use. A regular expression of a
// file that is not trusted could take for ever.
bool is_simple_pattern(std::string_view pattern) {
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      if (++i == pattern.size() || pattern[i] != '.') return false;
    } else if (c == '*') {
      if (i == 0 || pattern[i - 1] != '.' || (i > 1 && pattern[i - 2] == '\\')) return false;
    } else if (c == '$') {
      if (i + 1 != pattern.size()) return false;
    } else if (c == '^') {
      if (i != 0) return false;
    } else if (std::string_view("+?()[]{}|").find(c) != std::string_view::npos) {
      return false;
    }
  }
  return true;
}

// Returns true if the pattern matches at the beginning of the text (Python's re.match).
bool matches(std::string_view pattern, std::string_view text) {
  if (pattern.starts_with('^')) pattern.remove_prefix(1);
  // Which prefixes of the text the pattern up to here matches: no backtracking.
  std::vector<bool> reached(text.size() + 1, false);
  reached[0] = true;
  size_t i = 0;
  while (i < pattern.size()) {
    if (pattern[i] == '$' && i + 1 == pattern.size()) return reached[text.size()];
    const bool escaped = pattern[i] == '\\' && i + 1 < pattern.size();
    const char letter = escaped ? pattern[i + 1] : pattern[i];
    const bool any = !escaped && letter == '.';
    i += escaped ? 2 : 1;
    const bool star = i < pattern.size() && pattern[i] == '*';
    if (star) ++i;
    std::vector<bool> next(text.size() + 1, false);
    for (size_t at = 0; at <= text.size(); ++at) {
      if (star && (reached[at] || (at > 0 && next[at - 1] && (any || text[at - 1] == letter))))
        next[at] = true;
      if (!star && at > 0 && reached[at - 1] && (any || text[at - 1] == letter)) next[at] = true;
    }
    reached = std::move(next);
  }
  for (const bool there : reached)
    if (there) return true;
  return false;
}

void check_list(ConfigReader& config, const char* key, const std::vector<std::string>& list) {
  for (const std::string& entry : list)
    if (entry.starts_with("re:") && !is_simple_pattern(std::string_view(entry).substr(3)))
      config.refuse(
          key, fmt::format("'{}' is not supported: patterns have letters, '.' and '.*'", entry));
}

void read_gptq(ConfigReader& config, CheckpointQuantization& q) {
  q.kind = PackedKind::gptq;
  config.must_be("bits", 4);
  q.group = group_of(config, "group_size");
  q.reordered = config.boolean("desc_act", false);
  const std::string format = config.text("checkpoint_format", "gptq");
  if (format != "gptq" && format != "gptq_v2")
    config.refuse("checkpoint_format", "supported are gptq and gptq_v2");
  q.zeros_less_one = format == "gptq";
  config.must_be_unset("dynamic");
  config.must_be_unset("is_marlin_format");
  config.must_be_unset("lm_head");
  config.must_be_unset("static_groups_bits");
  q.plain = config.strings("modules_to_not_convert");
}

void read_awq(ConfigReader& config, CheckpointQuantization& q) {
  q.kind = PackedKind::awq;
  if (config.integer("bits", config.integer("w_bit", 0)) != 4)
    config.refuse("bits", "supported is 4");
  q.group = group_of(config, config.value("group_size").is_null() ? "q_group_size" : "group_size");
  std::string version = config.text("version", "gemm");
  for (char& c : version) c = char(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  if (version != "gemm") config.refuse("version", "supported is gemm");
  if (!config.boolean("zero_point", true)) config.refuse("zero_point", "supported is true");
  q.plain = config.strings("modules_to_not_convert");
}

void read_fp8(ConfigReader& config, CheckpointQuantization& q) {
  q.kind = PackedKind::fp8;
  config.must_be_unset("weight_block_size");
  config.must_be_unset("kv_cache_scheme");
  q.plain = config.strings("ignored_layers");
  for (const std::string& name : config.strings("modules_to_not_convert")) q.plain.push_back(name);
}

Status read_group(const std::string& file, const std::string& format, const json& group,
                  CheckpointQuantization& q) {
  ConfigReader config(file, "quantization_config.config_groups", group);
  config.must_be("targets", json::array({"Linear"}));
  config.must_be_unset("output_activations");
  const std::string own = config.text("format", format);
  if (own != format) config.refuse("format", "must be the whole configuration's, " + format);
  if (!config.value("weights").is_object()) {
    config.refuse("weights", "must be an object");
    return config.status();
  }
  KIVI_RETURN_IF_ERROR(config.status());
  ConfigReader weights(file, "quantization_config.config_groups.weights", config.value("weights"));
  const std::string strategy = weights.text("strategy", "tensor");
  weights.must_be_unset("block_structure");
  if (weights.boolean("dynamic", false)) weights.refuse("dynamic", "must be false");
  if (format == "float-quantized") {
    weights.must_be("num_bits", 8);
    weights.must_be("type", "float");
    if (strategy != "tensor" && strategy != "channel")
      weights.refuse("strategy", "supported are tensor and channel");
    if (!weights.boolean("symmetric", true)) weights.refuse("symmetric", "must be true");
    return weights.status();
  }
  weights.must_be("num_bits", 4);
  weights.must_be("type", "int");
  if (!config.value("input_activations").is_null())
    config.refuse("input_activations", "supported with pack-quantized is null");
  KIVI_RETURN_IF_ERROR(config.status());
  if (strategy != "group" && strategy != "channel")
    weights.refuse("strategy", "supported are group and channel");
  q.group = strategy == "channel" ? 0 : group_of(weights, "group_size");
  q.symmetric = weights.boolean("symmetric", true);
  const std::string order = weights.text("actorder", "static");
  q.reordered = order == "group";
  if (order != "group" && order != "static" && order != "weight" && order != "dynamic" &&
      order != "false")
    weights.refuse("actorder", "supported are group, weight, static and dynamic");
  if (order == "dynamic") q.reordered = true;
  return weights.status();
}

Status read_compressed(const std::string& file, ConfigReader& config, CheckpointQuantization& q) {
  const std::string format = config.text("format", "absent");
  q.method += " " + format;
  if (format == "float-quantized")
    q.kind = PackedKind::fp8;
  else if (format == "pack-quantized")
    q.kind = PackedKind::packed;
  else
    config.refuse("format", "supported are float-quantized and pack-quantized");
  config.must_be_unset("kv_cache_scheme");
  config.must_be_unset("transform_config");
  const json& sparsity = config.value("sparsity_config");
  if (sparsity.is_object() && sparsity.value("format", json("dense")) != json("dense"))
    config.refuse("sparsity_config", "supported is dense");
  q.plain = config.strings("ignore");
  const json& groups = config.value("config_groups");
  if (!groups.is_object() || groups.size() != 1)
    config.refuse("config_groups", "supported is one group");
  KIVI_RETURN_IF_ERROR(config.status());
  return read_group(file, format, *groups.begin(), q);
}

// The names of the modules whose matrices may be quantized, and their sizes.
struct Module {
  std::string name;  // without ".weight"
  int64_t rows, columns;
};
std::vector<Module> layer_modules(const DecoderSpec& spec, const TensorNames& names) {
  DecoderWeights weights;
  const WeightList list(spec, names, weights);
  std::vector<Module> modules;
  for (const WeightItem& item : list.items()) {
    if (item.matrix == nullptr || item.matrix == &weights.embedding) continue;
    for (const WeightPart& part : item.parts)
      modules.push_back({part.name.substr(0, part.name.size() - std::string_view(".weight").size()),
                         part.rows, item.columns});
  }
  return modules;
}

bool is_quantized(const CheckpointQuantization& q, const TensorNames& names,
                  const std::string& module) {
  // No format that is read quantizes the output head without saying so.
  return module != names.head && !is_listed(q.plain, module);
}

}  // namespace

bool is_listed(const std::vector<std::string>& plain, const std::string& module) {
  const std::string between_dots = "." + module + ".";
  for (const std::string& entry : plain) {
    if (entry.starts_with("re:")) {
      if (matches(std::string_view(entry).substr(3), module)) return true;
    } else if (!entry.empty() && between_dots.find("." + entry + ".") != std::string::npos) {
      return true;
    }
  }
  return false;
}

Result<CheckpointQuantization> read_quantization(const std::string& file, const json& object) {
  static const json empty = json::object();
  ConfigReader config(file, "quantization_config", object.is_object() ? object : empty);
  CheckpointQuantization q;
  q.method = config.text("quant_method", "absent");
  if (q.method == "gptq")
    read_gptq(config, q);
  else if (q.method == "awq")
    read_awq(config, q);
  else if (q.method == "fp8" || q.method == "fbgemm_fp8")
    read_fp8(config, q);
  else if (q.method == "compressed-tensors")
    KIVI_RETURN_IF_ERROR(read_compressed(file, config, q));
  else
    config.refuse("quant_method",
                  "supported are gptq, awq, fp8, fbgemm_fp8 and compressed-tensors");
  for (const char* key : {"ignore", "ignored_layers", "modules_to_not_convert"})
    if (config.value(key).is_array()) check_list(config, key, config.strings(key));
  KIVI_RETURN_IF_ERROR(config.status());
  return q;
}

WeightFormats quantized_formats(const CheckpointQuantization& q, const DecoderSpec& spec,
                                const TensorNames& names) {
  WeightFormats formats;
  if (q.kind == PackedKind::none) return formats;
  for (const Module& module : layer_modules(spec, names)) {
    WeightFormat format{q.kind == PackedKind::fp8 ? WeightKind::e4m3 : WeightKind::int4, q.group};
    format.reordered = q.reordered;
    if (is_quantized(q, names, module.name) && weight_fits(format, module.columns))
      formats[module.name + ".weight"] = format;
  }
  return formats;
}

Result<Checkpoint> open_checkpoint(const std::string& path, const CheckpointQuantization& q,
                                   const DecoderSpec& spec, const TensorNames& names) {
  KIVI_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(path));
  if (q.kind == PackedKind::none) return checkpoint;
  TensorMap& tensors = checkpoint.tensors();
  for (const Module& module : layer_modules(spec, names)) {
    if (!is_quantized(q, names, module.name)) continue;
    KIVI_ASSIGN_OR_RETURN(FileTensor tensor,
                          take_packed(tensors, path, module.name, module.rows, module.columns, q));
    tensors[module.name + ".weight"] = std::move(tensor);
  }
  return checkpoint;
}

}  // namespace kivi
