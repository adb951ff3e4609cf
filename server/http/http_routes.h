// SPDX-License-Identifier: Apache-2.0
// The route table: every path the server answers, who may call it, and what handles it.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <span>
#include <string_view>

#include "server/http/http_context.h"
#include "server/http/http_message.h"

namespace kivi {

class HttpConnection;

enum class Access {
  open,     // anyone
  key,      // Authorization: Bearer, where api_keys are set
  metrics,  // open, unless metrics_require_key
};

// A handler that answers at once, and one that takes its time and may stream. Both run on the
// connection's io thread. The second must end in exactly one reply (HttpConnection::reply or a
// stream), unless the client is gone.
using SimpleHandler = HttpReply (*)(HttpContext&, const HttpRequest&);
using AsyncHandler = boost::asio::awaitable<void> (*)(HttpConnection&);

struct Route {
  std::string_view path;    // a trailing "*" matches any rest that is not empty
  std::string_view method;  // "GET" (HEAD too) or "POST" (with a JSON body)
  Access access = Access::key;
  bool needs_model = false;  // 503 while loading
  bool new_work = false;     // 503 while draining
  SimpleHandler simple = nullptr;
  AsyncHandler async = nullptr;
};

// Null where no route has this path.
const Route* find_route(std::string_view path);

// Judges a request by its head: host and origin, authorization, path, method, media type, phase.
// Fills in request.handler. True: `route` handles it; else `refusal` is the reply. `open_only`:
// paths that are not open to anyone are refused, because there are too many connections.
bool admit_request(HttpContext& context, HttpRequest& request, const Route*& route,
                   HttpReply& refusal, bool open_only = false);

// The handlers, by file.
HttpReply handle_health(HttpContext&, const HttpRequest&);              // handle_health.cpp
HttpReply handle_live(HttpContext&, const HttpRequest&);                //
HttpReply handle_version(HttpContext&, const HttpRequest&);             //
HttpReply handle_metrics(HttpContext&, const HttpRequest&);             //
HttpReply handle_models(HttpContext&, const HttpRequest&);              // handle_models.cpp
HttpReply handle_model(HttpContext&, const HttpRequest&);               //
HttpReply handle_tokenizer_info(HttpContext&, const HttpRequest&);      //
boost::asio::awaitable<void> handle_tokenize(HttpConnection&);          // handle_tokenize.cpp
boost::asio::awaitable<void> handle_detokenize(HttpConnection&);        //
boost::asio::awaitable<void> handle_completions(HttpConnection&);       // handle_completions.cpp
boost::asio::awaitable<void> handle_chat_completions(HttpConnection&);  //

}  // namespace kivi
