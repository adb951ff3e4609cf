// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/request_message.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/slice.h>

#include <memory>
#include <new>
#include <vector>

#include "kivi/v1/kivi.pb.h"
#include "server/long_work.h"

namespace kivi {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// What a field takes beside the bytes of its text: the object of a message, a string or an unknown
// field, and its place in a vector that grows by doubling.
constexpr size_t kFieldBytes = 96;
// A number of a packed list has at least one byte on the wire and 4 in memory, in a vector that
// grows by doubling.
constexpr size_t kPackedFactor = 8;
constexpr int kDepthMax = 100;  // the parser's own limit

// The fields of a message or a group, one after another.
class FieldCounter {
 public:
  FieldCounter(const std::string& bytes, size_t limit)
      : in_(reinterpret_cast<const uint8_t*>(bytes.data()), int(bytes.size())),
        size_(bytes.size()),
        limit_(limit) {}

  // Counts the fields up to the end of the message, or up to the tag `end` of a group, or until
  // they are more than the limit. Returns false if they cannot be parsed. `type`: null if it is not
  // known.
  bool count(const Descriptor* type, uint32_t end, int depth) {
    if (depth > kDepthMax) return false;
    while (bytes_ <= limit_) {
      const uint32_t tag = in_.ReadTag();
      if (tag == 0) return end == 0 && in_.ConsumedEntireMessage();
      if (tag == end) return true;
      bytes_ += kFieldBytes;
      if (!count_field(tag, type, depth)) return false;
    }
    return true;
  }
  size_t bytes() const { return bytes_; }

 private:
  bool count_field(uint32_t tag, const Descriptor* type, int depth) {
    const int number = WireFormatLite::GetTagFieldNumber(tag);
    if (number == 0) return false;
    const FieldDescriptor* field = type == nullptr ? nullptr : type->FindFieldByNumber(number);
    switch (WireFormatLite::GetTagWireType(tag)) {
      case WireFormatLite::WIRETYPE_START_GROUP:
        return count(nullptr, WireFormatLite::MakeTag(number, WireFormatLite::WIRETYPE_END_GROUP),
                     depth + 1);
      case WireFormatLite::WIRETYPE_END_GROUP:
        return false;
      case WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
        break;
      default:
        return WireFormatLite::SkipField(&in_, tag);
    }
    uint32_t length = 0;
    if (!in_.ReadVarint32(&length) || length > size_) return false;
    if (field != nullptr && field->type() == FieldDescriptor::TYPE_MESSAGE) {
      const CodedInputStream::Limit outer = in_.PushLimit(int(length));
      if (!count(field->message_type(), 0, depth + 1)) return false;
      in_.PopLimit(outer);
      return true;
    }
    bytes_ += length * (field != nullptr && field->is_packable() ? kPackedFactor : 1);
    return in_.Skip(int(length));
  }

  CodedInputStream in_;
  const size_t size_, limit_;
  size_t bytes_ = 0;
};

// Returns true if the message has something to compile: a structured_output.
bool may_compile(const std::string& bytes, const Descriptor& type) {
  if (&type != v1::GenerateRequest::descriptor()) return false;
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()), int(bytes.size()));
  while (const uint32_t tag = in.ReadTag()) {
    if (WireFormatLite::GetTagFieldNumber(tag) == v1::GenerateRequest::kStructuredOutputFieldNumber)
      return true;
    if (!WireFormatLite::SkipField(&in, tag)) return false;
  }
  return false;
}

}  // namespace

bool RequestMessage::is_long() const {
  return bytes_.size() >= kLongRequestBytes || may_compile(bytes_, *message_.GetDescriptor());
}

bool RequestMessage::arrived() {
  const size_t size = incoming_.Length();
  bool held = share_.grow_to(size);
  if (held) {
    // Copied, so that the library's quota, which holds for all connections, is free again.
    try {
      bytes_.reserve(size);
      std::vector<grpc::Slice> slices;
      if (!incoming_.Dump(&slices).ok()) slices.clear();
      for (const grpc::Slice& slice : slices)
        bytes_.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    } catch (const std::bad_alloc&) {
      held = false;
      drop();
    }
  }
  incoming_.Clear();
  return held;
}

RequestMessage::Parsed RequestMessage::parse() {
  const auto most = parsed_bytes(bytes_, *message_.GetDescriptor(), share_.limit());
  // The parser would keep what comes before the fault, which is in no count.
  if (!most) return Parsed::malformed;
  if (!share_.grow_to(*most)) return Parsed::over_budget;
  const bool whole = message_.ParseFromString(bytes_);
  std::string().swap(bytes_);
  return whole ? Parsed::whole : Parsed::malformed;
}

void RequestMessage::drop() {
  const std::unique_ptr<google::protobuf::Message> dropped(message_.New());
  message_.GetReflection()->Swap(&message_, dropped.get());
  std::string().swap(bytes_);
  share_.release();
}

std::optional<size_t> parsed_bytes(const std::string& bytes, const Descriptor& type, size_t limit) {
  FieldCounter counter(bytes, limit);
  if (!counter.count(&type, 0, 0)) return std::nullopt;
  return counter.bytes();
}

}  // namespace kivi
