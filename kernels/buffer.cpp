// SPDX-License-Identifier: Apache-2.0
#include "kernels/buffer.h"

#include "kernels/backend.h"

namespace kivi {

Buffer::~Buffer() {
  if (data_ != nullptr) backend_->do_free(data_, bytes_);
}

}  // namespace kivi
