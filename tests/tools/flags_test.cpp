// SPDX-License-Identifier: Apache-2.0
// The table of flags: precedence, messages, and that files made from it are current.
#include "tools/flags.h"

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

namespace kivi {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream in(path);
  REQUIRE(in);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// A file that is removed at the end of the test.
struct TemporaryFile {
  fs::path path;
  explicit TemporaryFile(const std::string& text) {
    static int count = 0;
    path = fs::temp_directory_path() / fmt::format("kivi_flags_{}_{}", getpid(), count++);
    std::ofstream(path) << text;
  }
  ~TemporaryFile() { fs::remove(path); }
};

std::string error_of(Command command, std::vector<std::string> args, Environment environment = {}) {
  Settings settings;
  args.insert(args.begin(), "model");
  const auto outcome = parse_settings(command, args, environment, settings);
  REQUIRE_FALSE(outcome.ok());
  return outcome.error().message;
}

Settings parsed(std::vector<std::string> args, const Environment& environment = {}) {
  Settings settings;
  args.insert(args.begin(), "model");
  const auto outcome = parse_settings(kServe, args, environment, settings);
  INFO((outcome.ok() ? "" : outcome.error().message));
  REQUIRE(outcome.ok());
  return settings;
}

TEST_CASE("A flag wins over a variable, a variable over the file, the file over the default") {
  const TemporaryFile file(R"({"max_num_seqs": 11, "port": 8001, "host": "file"})");
  const Environment environment = {{"KIVI_MAX_NUM_SEQS", "22"}, {"KIVI_PORT", "8002"}};
  const Settings s = parsed({"--config", file.path.string(), "--max-num-seqs", "33"}, environment);
  CHECK(s.engine.max_num_seqs == 33);
  CHECK(s.server.port == 8002);
  CHECK(s.server.host == "file");
  CHECK(s.server.grpc_port == ServerConfig{}.grpc_port);
  CHECK(s.engine.model == "model");
}

TEST_CASE("Lists of a stronger source replace those of a weaker one") {
  const TemporaryFile file(R"({"api_key": ["a", "b"], "allowed_origins": ["x"]})");
  const Settings s = parsed({"--config", file.path.string(), "--api-key", "c", "--api-key", "d"},
                            {{"KIVI_ALLOWED_ORIGINS", "y,z"}});
  CHECK(s.server.api_keys == std::vector<std::string>{"c", "d"});
  CHECK(s.server.allowed_origins == std::vector<std::string>{"y", "z"});
}

TEST_CASE("A model has several names, and a file may hold one of them as a text") {
  const TemporaryFile one(R"({"served_model_name": "a"})"), none(R"({"served_model_name": ""})"),
      two(R"({"served_model_name": ["a", "b"]})");
  using Names = std::vector<std::string>;
  const auto names = [](const TemporaryFile& file, std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"--config", file.path.string()});
    return parsed(more).server.served_model_name;
  };
  CHECK(names(one) == Names{"a"});
  CHECK(names(none).empty());
  CHECK(names(two) == Names{"a", "b"});
  CHECK(names(two, {"--served-model-name", "c", "--served-model-name", "d"}) == Names{"c", "d"});
}

TEST_CASE("The config file and the keys' file may be named by variables") {
  const TemporaryFile config(R"({"kv_cache_dtype": "kivi2", "kv_cache_memory_bytes": "1GiB"})");
  const TemporaryFile keys("one\n\ntwo\n");
  const Settings s = parsed({"--api-key", "zero"}, {{"KIVI_CONFIG", config.path.string()},
                                                    {"KIVI_API_KEY_FILE", keys.path.string()}});
  CHECK(s.engine.kv_cache_dtype == "kivi2");
  CHECK(s.engine.kv_cache_memory_bytes == 1 << 30);
  CHECK(s.server.api_keys == std::vector<std::string>{"zero", "one", "two"});
}

TEST_CASE("MODEL may come from a variable; without any it is an error") {
  Settings settings;
  CHECK(parse_settings(kServe, {}, {{"KIVI_MODEL", "m"}}, settings).ok());
  CHECK(settings.engine.model == "m");
  Settings none;
  const auto outcome = parse_settings(kServe, {}, {}, none);
  REQUIRE_FALSE(outcome.ok());
  CHECK(outcome.error().message.find("MODEL is missing") != std::string::npos);
}

TEST_CASE("A slip is an error that names what was probably meant") {
  CHECK(error_of(kServe, {"--prot", "80"}) == "unknown flag --prot; did you mean --port?");
  CHECK(error_of(kServe, {"--max_num_seqs=3"}) ==
        "unknown flag --max_num_seqs; did you mean --max-num-seqs?");
  CHECK(error_of(kServe, {"--quux"}) == "unknown flag --quux");
  CHECK(error_of(kServe, {"other"}) == "unexpected argument \"other\"");
  const TemporaryFile file(R"({"max_num_seq": 1})");
  CHECK(error_of(kServe, {"--config", file.path.string()}) ==
        file.path.string() + ": unknown key \"max_num_seq\"; did you mean max_num_seqs?");
}

TEST_CASE("What a kernel benchmark measures") {
  Settings s;
  REQUIRE(parse_settings(kKernels,
                         {"m", "--ops", "embed,kv_attend", "--formats", "kivi2", "--rows", "1,64",
                          "--caches", "8x4096,64x1024", "--json", "out.json"},
                         {}, s)
              .ok());
  CHECK(s.kernels.ops == std::vector<std::string>{"embed", "kv_attend"});
  CHECK(s.kernels.formats == std::vector<std::string>{"kivi2"});
  CHECK(s.kernels.rows == std::vector<int>{1, 64});
  CHECK(s.kernels.caches == std::vector<CacheCase>{{8, 4096}, {64, 1024}});
  CHECK(s.json == "out.json");
}

TEST_CASE("An unknown KIVI_ variable is warned of, once, and ignored") {
  Settings settings;
  const auto outcome = parse_settings(kServe, {"m"}, {{"KIVI_PROT", "1"}, {"HOME", "x"}}, settings);
  REQUIRE(outcome.ok());
  REQUIRE(outcome->warnings.size() == 1);
  CHECK(outcome->warnings[0] == "unknown variable KIVI_PROT is ignored; did you mean KIVI_PORT?");
}

TEST_CASE("A bad value is an error that names source, value and expectation") {
  CHECK(error_of(kServe, {"--port", "70000"}) ==
        "--port is \"70000\", must be an integer in [-1, 65535]");
  CHECK(error_of(kServe, {"--port", "-2"}) ==
        "--port is \"-2\", must be an integer in [-1, 65535]");
  CHECK(error_of(kServe, {"--port", "80x"}).find("\"80x\"") != std::string::npos);
  CHECK(error_of(kServe, {"--gpu-memory-utilization", "nan"}) ==
        "--gpu-memory-utilization is \"nan\", must be a number in [0.05, 1]");
  CHECK(error_of(kServe, {"--kv-cache-dtype", "int3"}).find("kivi-k2v4") != std::string::npos);
  CHECK(error_of(kServe, {"--enforce-eager=perhaps"}).find("enforce-eager") != std::string::npos);
  CHECK(error_of(kServe, {"--port"}) == "--port has no value, must have one");
  CHECK(error_of(kServe, {"--kv-cache-memory-bytes", "9000000GiB"})
            .find("must be a number of bytes") != std::string::npos);
  CHECK(error_of(kServe, {}, {{"KIVI_THREADS", "many"}}) ==
        "KIVI_THREADS is \"many\", must be an integer in [0, 1024]");
  CHECK(error_of(kThroughput, {"--concurrency", "1,,2"}).find("separated by commas") !=
        std::string::npos);
  CHECK(error_of(kKernels, {"--caches", "8x4096,8"}).find("SEQUENCESxTOKENS") != std::string::npos);
  CHECK(error_of(kKernels, {"--caches", "0x4096"}).find("SEQUENCESxTOKENS") != std::string::npos);
  CHECK(error_of(kKernels, {"--ops", "embed,"}).find("separated by commas") != std::string::npos);
  CHECK(error_of(kKernels, {"--max-num-seqs", "8"}).starts_with("unknown flag --max-num-seqs"));
  CHECK(error_of(kThroughput, {"--prompt-len", "9:3"}).find("MIN:MAX") != std::string::npos);
  CHECK(error_of(kServe, {"--config", "/nowhere.json"}).find("/nowhere.json") != std::string::npos);
}

TEST_CASE("A wrong type in a file is an error that names file, key and value") {
  for (const std::string text :
       {R"({"port": "80"})", R"({"port": 80.5})", R"({"host": 1})", R"({"enforce_eager": 1})",
        R"({"api_key": "k"})", R"({"api_key": [1]})", R"({"port": null})", R"({"port": [80]})",
        R"([])", R"({"port": 80)"}) {
    Settings settings;
    const Status status = apply_config(text, "file.json", settings);
    INFO(text);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().message.starts_with("file.json: "));
    CHECK(status.error().message.find("json.exception") == std::string::npos);
  }
}

TEST_CASE("The files of TLS are taken from every source") {
  CHECK(parsed({"--ssl-keyfile", "k"}).server.ssl_keyfile == "k");
  CHECK(parsed({}, {{"KIVI_SSL_CERTFILE", "c"}}).server.ssl_certfile == "c");
  const TemporaryFile file(R"({"ssl_ca_certs": "x"})");
  CHECK(parsed({"--config", file.path.string()}).server.ssl_ca_certs == "x");
}

TEST_CASE("Booleans are switched on and off") {
  const TemporaryFile file(R"({"strict_params": true})");
  CHECK(parsed({"--strict-params"}).server.strict_params);
  CHECK(parsed({"--config", file.path.string()}).server.strict_params);
  CHECK_FALSE(parsed({"--config", file.path.string(), "--no-strict-params"}).server.strict_params);
  CHECK_FALSE(
      parsed({"--strict-params=false"}, {{"KIVI_STRICT_PARAMS", "1"}}).server.strict_params);
  CHECK(parsed({}, {{"KIVI_STRICT_PARAMS", "on"}}).server.strict_params);
}

TEST_CASE("A flag belongs to its commands; a file may hold keys of other commands") {
  CHECK(error_of(kGenerate, {"--port", "1"}).starts_with("unknown flag --port"));
  const TemporaryFile file(R"({"port": 1, "threads": 1})");
  Settings settings;
  CHECK(parse_settings(kGenerate, {"m", "-p", "x", "--config", file.path.string()}, {}, settings)
            .ok());
  CHECK(settings.engine.threads == 1);
  CHECK(settings.generate.prompt == "x");
}

TEST_CASE("A value given twice is the last one; negative and odd values pass") {
  CHECK(parsed({"--port", "1", "--port", "2"}).server.port == 2);
  CHECK(parsed({"--port", "-1"}).server.port == -1);
  CHECK(parsed({"--seed", "18446744073709551615"}).engine.seed == UINT64_MAX);
  Settings settings;
  REQUIRE(parse_settings(kGenerate,
                         {"m", "-p", "-", "--stop", "[a,b]", "--stop", "", "--temperature", "0",
                          "--prompt-ids", "1,2"},
                         {}, settings)
              .ok());
  CHECK(settings.generate.prompt == "-");
  CHECK(settings.generate.stop == std::vector<std::string>{"[a,b]", ""});
  CHECK(settings.generate.temperature == 0.0);
  CHECK_FALSE(settings.generate.top_p.has_value());
  CHECK(settings.generate.prompt_ids == std::vector<int>{1, 2});
}

TEST_CASE("Benchmark lengths and concurrency are read") {
  Settings s;
  REQUIRE(parse_settings(
              kThroughput,
              {"m", "--prompt-len", "64:512", "--output-len", "32", "--concurrency", "1,2,32"}, {},
              s)
              .ok());
  CHECK(s.throughput.prompt_len == LengthRange{64, 512});
  CHECK(s.throughput.output_len == LengthRange{32, 32});
  CHECK(s.throughput.concurrency == std::vector<int>{1, 2, 32});
}

TEST_CASE("Help is grouped and lists the command's flags and no other command's") {
  Settings settings;
  const auto outcome = parse_settings(kServe, {"--help"}, {}, settings);
  REQUIRE(outcome.ok());
  const std::string& help = outcome->help;
  for (const char* text : {"Usage: kivi serve MODEL", "\nKV cache:\n", "\nScheduling:\n",
                           "--kivi-residual-length R", "(default 8000)"})
    CHECK(help.find(text) != std::string::npos);
  CHECK(help.find("--ssl-keyfile") != std::string::npos);
  CHECK(help.find("--num-prompts") == std::string::npos);
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) CHECK(line.size() <= 100);
}

TEST_CASE("A variable sets what eval shares with the other commands, and nothing else of it") {
  Settings s;
  const Environment environment = {{"KIVI_THREADS", "3"}, {"KIVI_KV_CACHE_DTYPE", "kivi2"}};
  REQUIRE(parse_settings(kEval,
                         {"m", "--text", "t", "--passkey-depths", "0,0.5", "--kivi-group-size",
                          "32,64", "--no-divergence"},
                         environment, s)
              .ok());
  CHECK(s.engine.threads == 3);
  CHECK(s.eval.formats == std::vector<std::string>{"auto"});
  CHECK(s.eval.groups == std::vector<int>{32, 64});
  CHECK(s.eval.passkey.depths == std::vector<double>{0, 0.5});
  CHECK(s.text == "t");
  CHECK(error_of(kEval, {"--passkey-depths", "2"}).find("at most 1") != std::string::npos);
  CHECK(error_of(kEval, {"--config", "f"}).starts_with("unknown flag --config"));
}

TEST_CASE("kv-stats takes layers as numbers and ranges") {
  Settings s;
  REQUIRE(parse_settings(kKvStats, {"m", "--layers", "0,2-4", "--no-perplexity"}, {}, s).ok());
  CHECK(s.kv_stats.layers == std::vector<int>{0, 2, 3, 4});
  CHECK_FALSE(s.kv_stats.perplexity);
  CHECK(error_of(kKvStats, {"--layers", "x"}).find("ranges such as 0,4,7-9") != std::string::npos);
  CHECK(error_of(kKvStats, {"--nll-rise-max", "0"}).find("--nll-rise-max") != std::string::npos);
}

TEST_CASE("tune takes budgets in bytes a token and in bits a value") {
  Settings s;
  REQUIRE(parse_settings(kTune,
                         {"m", "--text", "t", "--budget", "700,2.75bits", "--kv-cache-dtype",
                          "kivi2.25", "--output", "o"},
                         {}, s)
              .ok());
  REQUIRE(s.tune.budgets.size() == 2);
  CHECK((s.tune.budgets[0].amount == 700 && !s.tune.budgets[0].in_bits));
  CHECK((s.tune.budgets[1].amount == 2.75 && s.tune.budgets[1].in_bits));
  CHECK(s.engine.kv_cache_dtype == "kivi2.25");
  CHECK(s.tune.output == "o");
  for (const char* wrong : {"bits", "3 bits", "0bits", "nan", "1e99", "3bits,"})
    CHECK(error_of(kTune, {"--budget", wrong}).find("bits a value (3bits)") != std::string::npos);
  CHECK(error_of(kTune, {"--kv-layer-bits", "f"}).starts_with("unknown flag --kv-layer-bits"));
}

TEST_CASE("Names, keys and variables of the table are unique and follow one rule") {
  Settings settings;
  std::set<std::string> names;                            // of settings that have a variable
  std::set<std::pair<unsigned, std::string>> of_command;  // names of a command's flags
  for (const Flag& flag : make_flags(settings)) {
    CAPTURE(flag.name);
    if (flag.in_environment) CHECK(names.insert(flag.name).second);
    CHECK((flag.in_environment || !flag.in_config));
    for (unsigned command = 1; command <= kTune; command *= 2)
      if ((flag.commands & command) != 0) CHECK(of_command.emplace(command, flag.name).second);
    CHECK(flag.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz-") == std::string::npos);
    CHECK_FALSE(flag.help.empty());
    CHECK(flag.commands != 0);
    if (flag.name == "kv-cache-dtype") {
      CHECK(flag.config_key() == "kv_cache_dtype");
      CHECK(flag.environment() == "KIVI_KV_CACHE_DTYPE");
    }
  }
}

TEST_CASE("Every default is accepted by its own flag") {
  Settings settings;
  for (const Flag& flag : make_flags(settings)) {
    const nlohmann::ordered_json value = flag.value.get();
    if (value.is_null() || value.is_array() || value == "") continue;
    INFO(flag.name);
    CHECK_FALSE(flag.value.set(value.is_string() ? value.get<std::string>() : value.dump()));
    CHECK(flag.value.get() == value);
  }
}

// Converts to anything: counts how many initializers an aggregate takes.
struct Anything {
  template <class T>
  operator T() const;  // NOLINT: implicit
};
template <class T, class... Initializers>
constexpr size_t field_count(Initializers... initializers) {
  if constexpr (requires { T{initializers..., Anything{}}; }) {
    return field_count<T>(initializers..., Anything{});
  } else {
    return sizeof...(initializers);
  }
}

TEST_CASE("Every field of the configurations has a row") {
  Settings settings;
  size_t of_engine = 0, of_server = 0;
  for (const Flag& flag : make_flags(settings)) {
    if (!flag.in_config || flag.name == "api-key-file") continue;
    // The first two limit the text of requests, which the engine's serving part judges; the third
    // is of the engine's scheduler.
    const bool of_requests = flag.name == "max-tokenize-bytes" || flag.name == "max-reply-bytes" ||
                             flag.name == "prefix-cache-per-key";
    const bool server = !of_requests && (flag.commands == kServe || flag.name.starts_with("log-"));
    ++(server ? of_server : of_engine);
  }
  // kv_layer_table is what studies set in place of the file of kv_layer_bits. It has no flag.
  CHECK(of_engine + 1 == field_count<EngineConfig>());
  CHECK(of_server == field_count<ServerConfig>());
}

TEST_CASE("configs/default.json holds exactly the defaults") {
  Settings defaults;
  const fs::path path = fs::path(KIVI_SOURCE_DIR) / "configs/default.json";
  CHECK(nlohmann::ordered_json::parse(read_file(path)) == config_of(defaults));
}

TEST_CASE("Every file of configs/ loads and survives a round trip") {
  int files = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(KIVI_SOURCE_DIR) / "configs")) {
    if (entry.path().extension() != ".json") continue;
    ++files;
    INFO(entry.path().string());
    Settings settings;
    const std::string text = read_file(entry.path());
    const Status status = apply_config(text, entry.path().filename(), settings);
    INFO((status.ok() ? "" : status.error().message));
    REQUIRE(status.ok());
    CHECK(validate(settings.engine).ok());
    const nlohmann::ordered_json config = config_of(settings);
    const nlohmann::json written = nlohmann::json::parse(text);
    for (const auto& [key, value] : written.items()) CHECK(config[key] == value);
    Settings again;
    REQUIRE(apply_config(config.dump(), "round trip", again).ok());
    CHECK(config_of(again) == config);
  }
  CHECK(files >= 6);
}

TEST_CASE("docs/configuration.md is current") {
  CHECK(read_file(fs::path(KIVI_SOURCE_DIR) / "docs/configuration.md") == flags_markdown());
}

}  // namespace
}  // namespace kivi
