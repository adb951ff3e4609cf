// SPDX-License-Identifier: Apache-2.0
// POST /v1/load_lora_adapter and /v1/unload_lora_adapter. Routers for vLLM call them; this server
// has no adapters.
#include "server/http/http_routes.h"

namespace kivi {

// Both bodies name the adapter in this field. Not 501: gateways take that for a replica that fails.
HttpReply handle_lora(HttpContext&, const HttpRequest&) {
  return error_reply(ApiError{
      kUnsupportedParameter,
      "this server serves one model without LoRA adapters: merge the adapter into the model's "
      "weights and serve the result",
      "lora_name"});
}

}  // namespace kivi
