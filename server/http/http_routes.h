// SPDX-License-Identifier: Apache-2.0
// The route table: every path that the server answers, who may call it, and its handler.
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

// A simple handler answers at once. An async handler may wait and may stream; it must end in
// exactly one reply (HttpConnection::reply or a stream), unless the client is gone. Both run on the
// io thread of the connection.
using SimpleHandler = HttpReply (*)(HttpContext&, const HttpRequest&);
using AsyncHandler = boost::asio::awaitable<void> (*)(HttpConnection&);

// In which dialect the errors of a path are written.
enum class Dialect { openai, anthropic };

struct Route {
  std::string_view path;    // a trailing "*" matches any rest that is not empty
  std::string_view method;  // "GET" (HEAD too) or "POST" (with a JSON body)
  Access access = Access::key;
  bool needs_model = false;  // 503 while loading
  bool new_work = false;     // 503 while draining
  SimpleHandler simple = nullptr;
  AsyncHandler async = nullptr;
  Dialect dialect = Dialect::openai;
};

// The route table.
std::span<const Route> all_routes();

// Returns the route of a path, or null.
const Route* find_route(std::string_view path);

// Judges a request by its head: host and origin, authorization, path, method, media type, phase.
// Fills in request.handler. Returns true if `route` handles the request; otherwise `refusal` is the
// reply. With `open_only`, only paths that are open to anyone are admitted, because there are too
// many connections.
bool admit_request(HttpContext& context, HttpRequest& request, const Route*& route,
                   HttpReply& refusal, bool open_only = false);

// The handlers, by file.
HttpReply handle_health(HttpContext&, const HttpRequest&);                // handle_health.cpp
HttpReply handle_live(HttpContext&, const HttpRequest&);                  //
HttpReply handle_version(HttpContext&, const HttpRequest&);               //
HttpReply handle_metrics(HttpContext&, const HttpRequest&);               //
HttpReply handle_playground(HttpContext&, const HttpRequest&);            // handle_playground.cpp
HttpReply handle_playground_css(HttpContext&, const HttpRequest&);        //
HttpReply handle_playground_js(HttpContext&, const HttpRequest&);         //
HttpReply handle_reference(HttpContext&, const HttpRequest&);             //
HttpReply handle_reference_js(HttpContext&, const HttpRequest&);          //
HttpReply handle_openapi(HttpContext&, const HttpRequest&);               // handle_openapi.cpp
HttpReply handle_load(HttpContext&, const HttpRequest&);                  // handle_server_info.cpp
HttpReply handle_server_info(HttpContext&, const HttpRequest&);           //
HttpReply handle_models(HttpContext&, const HttpRequest&);                // handle_models.cpp
HttpReply handle_model(HttpContext&, const HttpRequest&);                 //
HttpReply handle_tokenizer_info(HttpContext&, const HttpRequest&);        //
HttpReply handle_lora(HttpContext&, const HttpRequest&);                  // handle_lora.cpp
boost::asio::awaitable<void> handle_tokenize(HttpConnection&);            // handle_tokenize.cpp
boost::asio::awaitable<void> handle_detokenize(HttpConnection&);          //
boost::asio::awaitable<void> handle_completions(HttpConnection&);         // handle_completions.cpp
boost::asio::awaitable<void> handle_chat_completions(HttpConnection&);    //
boost::asio::awaitable<void> handle_completions_render(HttpConnection&);  //
boost::asio::awaitable<void> handle_chat_render(HttpConnection&);         //
boost::asio::awaitable<void> handle_embeddings(HttpConnection&);          // handle_embeddings.cpp
boost::asio::awaitable<void> handle_score(HttpConnection&);               //
boost::asio::awaitable<void> handle_rerank(HttpConnection&);              //
boost::asio::awaitable<void> handle_messages(HttpConnection&);            // handle_messages.cpp
boost::asio::awaitable<void> handle_count_tokens(HttpConnection&);        //
boost::asio::awaitable<void> handle_responses(HttpConnection&);           //

}  // namespace kivi
