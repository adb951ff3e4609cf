// SPDX-License-Identifier: Apache-2.0
// Methods of gRPC's standard services that the library of Debian 12 lacks: reflection in version 1
// (the library has v1alpha) and List of the health service (the library has Check and Watch).
// Like those of the library, they need no key.
#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "server/grpc/grpc_core.h"

namespace kivi {

// `core` outlives the services.
std::unique_ptr<grpc::Service> make_reflection_service(GrpcCore& core);
std::unique_ptr<grpc::Service> make_health_list_service(GrpcCore& core);

}  // namespace kivi
