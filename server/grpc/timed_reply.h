// SPDX-License-Identifier: Apache-2.0
// TimedReply is a call that sends a reply which its client must read in time.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <memory>

#include "server/grpc/grpc_core.h"

namespace kivi {

// Its messages arrive as bytes. Owned by a shared_ptr until OnDone.
template <class Response>
class TimedReply : public grpc::ServerBidiReactor<grpc::ByteBuffer, Response>,
                   public std::enable_shared_from_this<TimedReply<Response>> {
 protected:
  TimedReply(GrpcCore& core, grpc::CallbackServerContext& context)
      : core_(core), context_(context) {}

  // Sends `response`, which must live until replied(). A client that leaves it unread for
  // --write-timeout ends its call, and replied() is not called. One at a time.
  void reply(const Response& response) {
    unread_ = core_.waiting().add(write_limit(core_.state.config(), response.ByteSizeLong()),
                                  [weak = this->weak_from_this()] {
                                    if (const auto self = weak.lock()) self->give_up();
                                  });
    this->StartWrite(&response);
  }

  GrpcCore& core_;
  grpc::CallbackServerContext& context_;

 private:
  virtual void replied(bool ok) = 0;

  void OnWriteDone(bool ok) final {
    if (core_.waiting().remove(unread_))
      replied(ok);
    else
      end_given_up();
  }
  // The write is under way, so the call cannot end before this has ended it.
  void give_up() {
    context_.TryCancel();
    end_given_up();
  }
  // Ends the call at its second call: the write is over, and nobody cancels the call any more.
  void end_given_up() {
    if (gave_up_.exchange(true)) this->Finish(grpc::Status::CANCELLED);
  }

  WaitingCalls::Ticket unread_;
  std::atomic<bool> gave_up_{false};
};

}  // namespace kivi
