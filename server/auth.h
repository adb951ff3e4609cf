// Bearer keys, for HTTP's and gRPC's `authorization` alike.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kivi {

// Is `authorization` ("Bearer KEY") one of `keys`? Takes the same time for every wrong key of a
// length. Any thread.
bool bearer_matches(const std::vector<std::string>& keys, std::string_view authorization);

}  // namespace kivi
