// SPDX-License-Identifier: Apache-2.0
#include "server/logging.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/async_logger.h>
#include <spdlog/formatter.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/spdlog.h>

#include <thread>
#include <utility>

#include "base/utf8.h"
#include "server/json_writer.h"
#include "server/stderr_sink.h"

namespace kivi {
namespace {

constexpr size_t kMessageBytesMax = 8192;
// Lines that wait for the reader; spdlog keeps their slots from the start (about 1 MB).
constexpr size_t kQueueLines = 2048;

std::string_view cut(std::string_view message) { return message.substr(0, kMessageBytesMax); }

std::string cut_note(std::string_view message) {
  if (message.size() <= kMessageBytesMax) return {};
  return fmt::format("... ({} more bytes)", message.size() - kMessageBytesMax);
}

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
    const std::string_view message(msg.payload.data(), msg.payload.size());
    append_json_string(line, std::string(cut(message)) + cut_note(message));
    line += "}\n";
    dest.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

// "%*": the message, as one line.
class OneLineMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& msg, const std::tm&,
              spdlog::memory_buf_t& dest) override {
    const std::string text = one_line(std::string_view(msg.payload.data(), msg.payload.size()));
    dest.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override {
    return spdlog::details::make_unique<OneLineMessage>();
  }
};

std::unique_ptr<spdlog::formatter> make_formatter(const std::string& log_format) {
  if (log_format == "json") return std::make_unique<JsonFormatter>();
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<OneLineMessage>('*').set_pattern("%Y-%m-%d %H:%M:%S.%e %^%L%$ %*");
  return formatter;
}

void install(std::shared_ptr<spdlog::logger> logger, const ServerConfig& config) {
  logger->set_formatter(make_formatter(config.log_format));
  logger->set_level(spdlog::level::from_str(config.log_level));
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace

std::string one_line(std::string_view message) {
  std::string replaced, line;
  const std::string_view text = as_valid_utf8(cut(message), replaced);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == '\n') {
      line += "\\n";
    } else if (byte == '\r') {
      line += "\\r";
    } else if (byte == '\t') {
      line += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      line += fmt::format("\\x{:02x}", byte);
    } else if (byte == 0xC2 &&
               static_cast<unsigned char>(text[i + 1]) < 0xA0) {  // U+0080 to U+009F
      line += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[++i]));
    } else {
      line += text[i];
    }
  }
  return line + cut_note(message);
}

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
  install(std::make_shared<spdlog::logger>("", std::make_shared<StderrSink>(nullptr)), config);
  return ok_status();
}

struct AsyncLog::Impl {
  std::shared_ptr<spdlog::details::thread_pool> queue;
  std::shared_ptr<StderrSink> sink;
  std::shared_ptr<spdlog::logger> logger;
  ServerConfig config;
};

AsyncLog::AsyncLog(const ServerConfig& config) : impl_(std::make_unique<Impl>()) {
  impl_->config = config;
  // No signal may be handled by the writing thread: it inherits this mask.
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);
  impl_->queue = std::make_shared<spdlog::details::thread_pool>(kQueueLines, 1);
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
  impl_->sink = std::make_shared<StderrSink>(impl_->queue.get());
  impl_->logger = std::make_shared<spdlog::async_logger>(
      "", impl_->sink, impl_->queue, spdlog::async_overflow_policy::overrun_oldest);
  install(impl_->logger, config);
}

AsyncLog::~AsyncLog() {
  flush(kFlushTime);
  impl_->sink->stop_waiting_at(std::chrono::steady_clock::now());
  const auto direct = std::make_shared<StderrSink>(nullptr);
  direct->stop_waiting_at(std::chrono::steady_clock::now());
  install(std::make_shared<spdlog::logger>("", direct), impl_->config);
  impl_->logger.reset();
  impl_->queue.reset();  // joins the writing thread
}

int64_t AsyncLog::lines_dropped() const { return impl_->sink->lines_dropped(); }

bool AsyncLog::flush(std::chrono::milliseconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  const int64_t before = impl_->sink->flushes();
  impl_->logger->flush();  // a mark in the queue
  while (impl_->sink->flushes() == before) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace kivi
