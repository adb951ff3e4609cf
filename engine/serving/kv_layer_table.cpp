// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/kv_layer_table.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/regular_file.h"

namespace kivi {
namespace {

using Json = nlohmann::json;

constexpr int64_t kFileBytesMax = 1 << 20;

Error wrong(const std::string& file, const std::string& what) {
  return Error{ErrorCode::invalid, fmt::format("kv_layer_bits: {}: {}", file, what),
               "kv_layer_bits"};
}

// The list `name`: 2 or 4 for each of `layers` layers.
Status check_list(const Json& table, const char* name, const std::string& file, int layers) {
  const auto list = table.find(name);
  if (list == table.end() || !list->is_array())
    return wrong(file, fmt::format("{} is missing or no list, must be a list of {} numbers, one "
                                   "for each layer",
                                   name, layers));
  if (int64_t(list->size()) != layers)
    return wrong(file, fmt::format("{} has {} numbers, must have {}, one for each of the model's "
                                   "layers",
                                   name, list->size(), layers));
  for (size_t i = 0; i < list->size(); ++i)
    if ((*list)[i] != 2 && (*list)[i] != 4)
      return wrong(
          file, fmt::format(
                    "{}[{}] is {}, must be 2 or 4", name, i,
                    (*list)[i].dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 40)));
  return ok_status();
}

Result<std::string> read_table(const std::string& path) {
  const auto refuse = [&](const std::string& message) {
    return Error{ErrorCode::invalid,
                 fmt::format("kv_layer_bits is \"{}\", must be a file of at most {} bytes that can "
                             "be read: {}",
                             path, kFileBytesMax, message),
                 "kv_layer_bits"};
  };
  const Result<RegularFile> file = RegularFile::open(path);
  if (!file.ok()) return refuse(file.error().message);
  if (file->bytes() > kFileBytesMax) return refuse(fmt::format("it has {} bytes", file->bytes()));
  Result<std::string> text = file->read();
  if (!text.ok()) return refuse(text.error().message);
  return text;
}

}  // namespace

Result<KvLayerBits> parse_kv_layer_bits(const std::string& text, const std::string& file,
                                        int layers) {
  if (layers > KvLayerBits::kLayersMax)
    return wrong(file, fmt::format("the model has {} layers, a table can have at most {}", layers,
                                   KvLayerBits::kLayersMax));
  const Json table = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!table.is_object()) return wrong(file, "the file must hold one JSON object");
  for (const auto& [key, value] : table.items())
    if (key != "key_bits" && key != "value_bits")
      return wrong(file, fmt::format("unknown key \"{}\", must be key_bits or value_bits", key));
  KIVI_RETURN_IF_ERROR(check_list(table, "key_bits", file, layers));
  KIVI_RETURN_IF_ERROR(check_list(table, "value_bits", file, layers));
  KvLayerBits bits;
  for (size_t i = 0; i < size_t(layers); ++i)
    bits.add(table["key_bits"][i].get<int>(), table["value_bits"][i].get<int>());
  return bits;
}

std::string kv_layer_bits_text(const KvLayerBits& bits) {
  std::string keys, values;
  for (int layer = 0; layer < bits.layers; ++layer) {
    keys += fmt::format("{}{}", layer == 0 ? "" : ", ", bits.key_bits(layer));
    values += fmt::format("{}{}", layer == 0 ? "" : ", ", bits.value_bits(layer));
  }
  return fmt::format("{{\n  \"key_bits\": [{}],\n  \"value_bits\": [{}]\n}}\n", keys, values);
}

Result<KvLayout> kv_layout_of(const EngineConfig& config, const KvShape& shape, int query_heads) {
  KvLayout layout;
  layout.shape = shape;
  KIVI_ASSIGN_OR_RETURN(layout.format, kv_format_of(config, shape, query_heads));
  layout.layer_bits = config.kv_layer_table;
  const std::string& path = config.kv_layer_bits;
  if (path.empty() && layout.layer_bits.empty()) return layout;
  if (layout.format.kind != KvKind::kivi)
    return Error{ErrorCode::invalid,
                 fmt::format("kv_layer_bits is \"{}\", but the cache format is {}, which has no "
                             "bits to choose; kv_cache_dtype must be a KIVI format",
                             path, name_of(layout.format)),
                 "kv_layer_bits"};
  if (!path.empty()) {
    KIVI_ASSIGN_OR_RETURN(const std::string text, read_table(path));
    KIVI_ASSIGN_OR_RETURN(layout.layer_bits, parse_kv_layer_bits(text, path, shape.layers));
  }
  KIVI_VERIFY(layout.layer_bits.layers == shape.layers);
  if (layout.layer_bits.uniform()) layout = layout.of_layer(0);
  return layout;
}

}  // namespace kivi
