// SPDX-License-Identifier: Apache-2.0
// frontend_bench: how many SSE tokens a second the HTTP front end carries, with a model that costs
// nothing. The server (engine over a runner that invents tokens, real tokenizer) runs in this
// process, the client in a forked one: it keeps --connections streams open, each with its next
// request as soon as the last has ended, and counts events. Both share the machine's cores.
//
//   frontend_bench [--connections 256] [--tokens 256] [--seconds 5] [--io-threads 2] [--step-us 0]
//                  [--port 0]
//
// --port: not 0: no client of its own; serves on this port for --seconds, for another client
// (`kivi bench serve`), and prints what the engine made and the CPU time that it took.
// --step-us: how long the model's step takes; 0: no time at all, the engine then runs ahead and
// events may carry several tokens. With events_per_token near 1, every token had an event of its
// own.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "server/http/http_server.h"
#include "tests/engine/fake_runner.h"

namespace kivi {
namespace {

struct BenchOptions {
  int connections = 256;
  int tokens = 256;  // of one stream
  int seconds = 5;
  int io_threads = 2;
  int step_us = 0;
  int port = 0;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return double(t.tv_sec) + double(t.tv_usec) * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// ---- the client's process ----

// What the client found, through a pipe.
struct ClientFigures {
  int64_t events = 0;   // "\n\n" of bodies, less one [DONE] a stream
  int64_t streams = 0;  // ended ones
  int64_t bytes = 0;
  double seconds = 0, cpu_seconds = 0;
  int failed = 0;
};

struct Stream {
  int fd = -1;
  char last = 0;     // of the bytes before: an event's end may lie across two reads
  std::string tail;  // the last bytes, where the end of the body is looked for
};

constexpr std::string_view kBodyEnd = "\r\n0\r\n\r\n";

int64_t count_event_ends(std::string_view bytes, char last) {
  int64_t count = last == '\n' && bytes.front() == '\n' ? 1 : 0;
  const char* at = bytes.data();
  const char* const end = at + bytes.size();
  while ((at = static_cast<const char*>(std::memchr(at, '\n', size_t(end - at)))) != nullptr) {
    if (at + 1 < end && at[1] == '\n') ++count;
    ++at;
  }
  return count;
}

// Reads what is there. True: the stream's body has ended.
bool read_stream(Stream& stream, ClientFigures& figures) {
  static char bytes[64 << 10];
  const ssize_t got = recv(stream.fd, bytes, sizeof bytes, MSG_DONTWAIT);
  if (got <= 0) {
    figures.failed += got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
    return false;
  }
  figures.bytes += got;
  figures.events += count_event_ends(std::string_view(bytes, size_t(got)), stream.last);
  stream.last = bytes[got - 1];
  if (size_t(got) >= kBodyEnd.size())
    stream.tail.assign(bytes + got - kBodyEnd.size(), kBodyEnd.size());
  else
    stream.tail.append(bytes, size_t(got));
  return stream.tail.ends_with(kBodyEnd);
}

int connect_to(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(uint16_t(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    std::perror("connect");
    std::exit(1);
  }
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

ClientFigures run_client(const BenchOptions& options, int port) {
  const std::string body = fmt::format(
      R"({{"prompt":"Once upon a time","max_tokens":{},"ignore_eos":true,"stream":true}})",
      options.tokens);
  const std::string request = fmt::format(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: {}\r\n\r\n{}",
      body.size(), body);
  const int poller = epoll_create1(0);
  std::vector<Stream> streams(size_t(options.connections));
  for (Stream& stream : streams) {
    stream.fd = connect_to(port);
    epoll_event event{EPOLLIN, {.ptr = &stream}};
    epoll_ctl(poller, EPOLL_CTL_ADD, stream.fd, &event);
  }
  ClientFigures figures;
  const Clock::time_point start = Clock::now();
  const auto send_request = [&](Stream& stream) {
    stream.tail.clear();
    if (send(stream.fd, request.data(), request.size(), 0) != ssize_t(request.size()))
      ++figures.failed;
  };
  for (Stream& stream : streams) send_request(stream);
  std::vector<epoll_event> ready(streams.size());
  while (seconds_since(start) < options.seconds && figures.failed == 0) {
    const int count = epoll_wait(poller, ready.data(), int(ready.size()), 100);
    for (int i = 0; i < count; ++i) {
      Stream& stream = *static_cast<Stream*>(ready[size_t(i)].data.ptr);
      if (!read_stream(stream, figures)) continue;
      ++figures.streams;
      send_request(stream);
    }
  }
  figures.seconds = seconds_since(start);
  figures.cpu_seconds = cpu_seconds();
  figures.events -= figures.streams;
  return figures;
}

// Waits for the port on `from`, runs, writes the figures to `to`.
[[noreturn]] void client_process(const BenchOptions& options, int from, int to) {
  int port = 0;
  if (read(from, &port, sizeof port) != sizeof port) std::_Exit(1);
  const ClientFigures figures = run_client(options, port);
  const bool written = write(to, &figures, sizeof figures) == sizeof figures;
  std::_Exit(written && figures.failed == 0 ? 0 : 1);
}

// ---- the server's process ----

struct Served {
  Metrics metrics{"kivi", "bench"};
  ServerConfig config;
  std::unique_ptr<ServerState> state;
  std::unique_ptr<HttpServer> http;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Engine> engine;
  ServedModel model;
};

void start_server(const BenchOptions& options, Served& served) {
  testing::FakeEngineOptions engine;
  engine.config.max_num_seqs = options.connections;
  engine.config.max_num_batched_tokens = options.connections + 1024;
  engine.config.prefill_chunk_tokens = 512;
  engine.runner.vocab_size = 4096;
  // Words of the tales, so that each token is text of its own.
  auto tokenizer = load_tokenizer(KIVI_SOURCE_DIR "/models/tales-llama");
  KIVI_VERIFY(tokenizer.ok());
  served.tokenizer = std::move(tokenizer).value();
  engine.runner.tokens = testing::FakeRunnerOptions::Tokens::script;
  engine.runner.script = served.tokenizer->encode(
      "there was a king who had a daughter, and she was so beautiful that the sun itself was "
      "astonished whenever it shone in her face.",
      false);
  engine.runner.step_delay = std::chrono::microseconds(options.step_us);
  engine.pages = options.connections * 48;
  served.engine = testing::make_fake_engine(std::move(engine));
  served.engine->start();
  served.model.name = "bench";
  served.model.fingerprint = "fp_bench";
  served.model.max_model_len = 2048;
  served.model.tokenizer = served.tokenizer.get();
  served.model.engine = served.engine.get();
  served.config.port = options.port;
  served.config.io_threads = options.io_threads;
  served.state = std::make_unique<ServerState>(served.config, served.metrics);
  served.http = std::make_unique<HttpServer>(*served.state);
  const Status started = served.http->start();
  KIVI_VERIFY(started.ok());
  served.state->set_model(served.model);
}

int serve_only(const BenchOptions& options) {
  Served served;
  start_server(options, served);
  const double cpu_before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::seconds(options.seconds));
  const double server_cpu = cpu_seconds() - cpu_before;
  const auto tokens = served.engine->stats().generation_tokens;
  served.http->stop();
  served.engine.reset();
  fmt::print("tokens {}, server's CPU {:.2f} s, {:.2f} us a token\n", tokens, server_cpu,
             server_cpu * 1e6 / std::max(1.0, double(tokens)));
  return 0;
}

int run(const BenchOptions& options) {
  if (options.port != 0) return serve_only(options);
  int port_pipe[2], figures_pipe[2];
  if (pipe(port_pipe) != 0 || pipe(figures_pipe) != 0) return 1;
  const pid_t client = fork();  // before there are threads
  if (client == 0) client_process(options, port_pipe[0], figures_pipe[1]);
  Served served;
  start_server(options, served);
  const int port = served.http->port();
  if (write(port_pipe[1], &port, sizeof port) != sizeof port) return 1;
  const double cpu_before = cpu_seconds();
  ClientFigures figures;
  const bool got = read(figures_pipe[0], &figures, sizeof figures) == sizeof figures;
  const EngineStats stats = served.engine->stats();
  const double server_cpu = cpu_seconds() - cpu_before;
  int status = 0;
  waitpid(client, &status, 0);
  served.http->stop();
  served.engine.reset();
  if (!got || status != 0) {
    fmt::print(stderr, "the client failed\n");
    return 1;
  }
  const double tokens = double(figures.streams) * options.tokens;
  fmt::print("connections {}, tokens a stream {}, io threads {}, step {} us, {:.2f} s\n",
             options.connections, options.tokens, options.io_threads, options.step_us,
             figures.seconds);
  fmt::print("SSE events/s            {:>12.0f}\n", double(figures.events) / figures.seconds);
  fmt::print("tokens/s (ended streams){:>12.0f}\n", tokens / figures.seconds);
  fmt::print("tokens/s (engine)       {:>12.0f}\n",
             double(stats.generation_tokens) / figures.seconds);
  fmt::print("events a token          {:>12.3f}\n",
             double(figures.events) / double(stats.generation_tokens));
  fmt::print("requests/s              {:>12.1f}\n", double(figures.streams) / figures.seconds);
  fmt::print("MB/s                    {:>12.1f}\n", double(figures.bytes) / 1e6 / figures.seconds);
  fmt::print("CPU us an event: server {:>12.2f}, client {:.2f}\n",
             server_cpu * 1e6 / double(figures.events),
             figures.cpu_seconds * 1e6 / double(figures.events));
  return 0;
}

}  // namespace
}  // namespace kivi

int main(int argc, char** argv) {
  kivi::BenchOptions options;
  const std::pair<const char*, int*> flags[] = {
      {"--connections", &options.connections}, {"--tokens", &options.tokens},
      {"--seconds", &options.seconds},         {"--io-threads", &options.io_threads},
      {"--step-us", &options.step_us},         {"--port", &options.port}};
  for (int i = 1; i < argc; i += 2) {
    bool known = false;
    for (const auto& [name, value] : flags)
      if (i + 1 < argc && std::strcmp(argv[i], name) == 0) {
        *value = std::atoi(argv[i + 1]);
        known = true;
      }
    if (!known) {
      fmt::print(stderr, "unknown argument {}; see the head of frontend_bench.cpp\n", argv[i]);
      return 2;
    }
  }
  return kivi::run(options);
}
