// SPDX-License-Identifier: Apache-2.0
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <condition_variable>
#include <mutex>

#include "kivi/v1/kivi.pb.h"
#include "server/grpc/grpc_convert.h"
#include "tests/fuzz/fuzz_model.h"
#include "tests/fuzz/grpc_messages.h"
#include "tests/fuzz/targets.h"

namespace kivi::fuzz {
namespace {

using google::protobuf::Message;

template <class T>
std::unique_ptr<Message> parse(std::string_view bytes) {
  auto message = std::make_unique<T>();
  if (!message->ParseFromArray(bytes.data(), int(bytes.size()))) return nullptr;
  return message;
}

// Maps in the order of their keys.
std::string written(const Message& message) {
  std::string text;
  {
    google::protobuf::io::StringOutputStream stream(&text);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return text;
}

// What poll() waits for. Shared with the engine's thread, which may notify late.
struct News {
  std::mutex mutex;  // guards the rest
  std::condition_variable changed;
  bool there = false;

  void tell() {
    const std::lock_guard lock(mutex);
    there = true;
    changed.notify_one();
  }
  void wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return there; });
    there = false;
  }
};

// False where the request is refused.
bool complete(const v1::GenerateRequest& message, Delivery delivery) {
  Result<CompletionRequest> request = to_completion_request(message, fuzz_model(), delivery);
  Status status = request.ok() ? ok_status() : Status(request.error());
  if (request.ok()) {
    const auto news = std::make_shared<News>();
    const auto completion =
        Completion::start(fuzz_model(), std::move(*request), [news] { news->tell(); });
    if (completion.ok()) {
      v1::CompleteResponse response;
      std::vector<TextChunk> chunks;
      for (bool done = false; !done; chunks.clear()) {
        news->wait();
        done = (*completion)->poll(chunks);
        append_chunks(chunks, message.logprobs() >= 0, *response.mutable_choices());
      }
      set_usage((*completion)->usage(), *response.mutable_usage());
      KIVI_VERIFY(response.IsInitialized() && !response.SerializeAsString().empty());
      return true;
    }
    status = completion.error();
  }
  const grpc::Status sent = to_grpc_status(status.error());
  KIVI_VERIFY(!sent.ok() && sent.error_code() != grpc::StatusCode::INTERNAL);
  return false;
}

}  // namespace

std::unique_ptr<Message> parse_grpc_message(std::string_view bytes) {
  if (bytes.empty()) return nullptr;
  const std::string_view rest = bytes.substr(1);
  switch (bytes.front() % 6) {
    case 0:
    case 1:
      return parse<v1::GenerateRequest>(rest);
    case 2:
      return parse<v1::TokenizeRequest>(rest);
    case 3:
      return parse<v1::DetokenizeRequest>(rest);
    case 4:
      return parse<v1::AbortRequest>(rest);
    default:
      return parse<v1::GetModelInfoRequest>(rest);
  }
}

bool read_grpc_message(std::string_view bytes) {
  const auto message = parse_grpc_message(bytes);
  if (message == nullptr) return false;
  // What is written is read as the same.
  const std::unique_ptr<Message> again(message->New());
  const std::string text = written(*message);
  KIVI_VERIFY(again->ParseFromString(text) && written(*again) == text);
  if (!check_known_fields(*message).ok()) return false;
  const auto* generate = dynamic_cast<const v1::GenerateRequest*>(message.get());
  if (generate == nullptr) return true;
  return complete(*generate, bytes.front() % 2 == 0 ? Delivery::whole : Delivery::stream);
}

}  // namespace kivi::fuzz
