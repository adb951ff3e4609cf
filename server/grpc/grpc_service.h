// SPDX-License-Identifier: Apache-2.0
// The methods of kivi.v1.Kivi over a GrpcCore: callback API, no thread per call.
#pragma once

#include <memory>

#include "server/grpc/grpc_core.h"

namespace grpc {
class Service;
}

namespace kivi {

// `core` outlives the service.
std::unique_ptr<grpc::Service> make_grpc_service(GrpcCore& core);

}  // namespace kivi
