// SPDX-License-Identifier: Apache-2.0
// The file descriptors that the process may open, and the limits of connections that follow.
#pragma once

#include "base/result.h"
#include "server/server_config.h"

namespace kivi {

// Raises the soft limit of open file descriptors to the hard one. Returns the limit that holds now.
long raise_descriptor_limit();

// Fits the limits of connections below `descriptors`, with a reserve for files and for refusals. A
// limit that still has its default is lowered, which is logged. Error invalid, naming the field,
// where limits that were chosen do not fit, or where too little is left to serve at all.
Status fit_connections(ServerConfig& config, long descriptors);

}  // namespace kivi
