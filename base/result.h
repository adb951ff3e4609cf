// SPDX-License-Identifier: Apache-2.0
// Result<T> holds a value or an Error. It is for mistakes of users and files. Our own mistakes fail
// a KIVI_VERIFY.
#pragma once

#include <string>
#include <utility>
#include <variant>

#include "base/verify.h"

namespace kivi {

// The kind of a failure. The front ends map each kind to one HTTP status and one gRPC code.
enum class ErrorCode {
  invalid,             // the caller's value is wrong (400, INVALID_ARGUMENT)
  context_length,      // prompt + output do not fit the model's context (400, OUT_OF_RANGE)
  not_found,           // no such model, file or request (404, NOT_FOUND)
  unsupported,         // understood, but not implemented (400, UNIMPLEMENTED)
  resource_exhausted,  // a stated limit is reached; try again later (503, RESOURCE_EXHAUSTED)
  unavailable,         // loading or draining; try again later (503, UNAVAILABLE)
  deadline,            // timed out (408, DEADLINE_EXCEEDED)
  cancelled,           // the client is gone (499, CANCELLED)
  internal,            // a step failed (500, INTERNAL)
};

// `message` names the thing, its value and what it must be. `field` is the parameter at fault, or
// "".
struct Error {
  ErrorCode code = ErrorCode::internal;
  std::string message;
  std::string field = {};
};

template <class T>
class [[nodiscard]] Result {
 public:
  using value_type = T;

  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  // Requires that the result is ok.
  T& value() & {
    KIVI_VERIFY(ok());
    return std::get<0>(state_);
  }
  const T& value() const& {
    KIVI_VERIFY(ok());
    return std::get<0>(state_);
  }
  T&& value() && {
    KIVI_VERIFY(ok());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // Requires that the result is an error.
  const Error& error() const {
    KIVI_VERIFY(!ok());
    return std::get<1>(state_);
  }

 private:
  std::variant<T, Error> state_;
};

struct Unit {};
using Status = Result<Unit>;
inline Status ok_status() { return Unit{}; }

// Returns the error of `expr` from the enclosing function, or assigns its value to `lhs`.
#define KIVI_CONCAT_INNER(a, b) a##b
#define KIVI_CONCAT(a, b) KIVI_CONCAT_INNER(a, b)
#define KIVI_ASSIGN_OR_RETURN(lhs, expr) \
  KIVI_ASSIGN_OR_RETURN_INNER(KIVI_CONCAT(result_, __LINE__), lhs, expr)
#define KIVI_ASSIGN_OR_RETURN_INNER(tmp, lhs, expr) \
  auto tmp = (expr);                                \
  if (!tmp.ok()) return tmp.error();                \
  lhs = std::move(tmp).value()
#define KIVI_RETURN_IF_ERROR(expr)                                 \
  do {                                                             \
    if (auto status = (expr); !status.ok()) return status.error(); \
  } while (0)

}  // namespace kivi
