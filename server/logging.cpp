#include "server/logging.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

#include "server/json_writer.h"

namespace kivi {
namespace {

// spdlog's patterns do not escape the message.
class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& msg, spdlog::memory_buf_t& dest) override {
    const auto level = spdlog::level::to_string_view(msg.level);
    const auto micros =
        std::chrono::duration_cast<std::chrono::microseconds>(msg.time.time_since_epoch());
    std::string line = fmt::format(
        "{{\"time\":\"{:%Y-%m-%dT%H:%M:%S}.{:06}Z\",\"level\":\"{}\",\"thread\":{},\"message\":",
        fmt::gmtime(spdlog::log_clock::to_time_t(msg.time)), micros.count() % 1'000'000,
        std::string_view(level.data(), level.size()), msg.thread_id);
    append_json_string(line, std::string_view(msg.payload.data(), msg.payload.size()));
    line += "}\n";
    dest.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

}  // namespace

Status setup_logging(const ServerConfig& config) {
  const spdlog::level::level_enum level = spdlog::level::from_str(config.log_level);
  if (level == spdlog::level::off && config.log_level != "off")
    return Error{ErrorCode::invalid,
                 fmt::format("log_level is {}, must be trace, debug, info, warning or error",
                             config.log_level),
                 "log_level"};
  if (config.log_format != "text" && config.log_format != "json")
    return Error{ErrorCode::invalid,
                 fmt::format("log_format is {}, must be text or json", config.log_format),
                 "log_format"};
  auto logger =
      std::make_shared<spdlog::logger>("", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  if (config.log_format == "json")
    logger->set_formatter(std::make_unique<JsonFormatter>());
  else
    logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%L%$ %v");
  logger->set_level(level);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
  return ok_status();
}

}  // namespace kivi
