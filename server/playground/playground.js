// SPDX-License-Identifier: Apache-2.0
// The playground: it sends requests to the server that it came from, and shows what that server
// says of itself. It keeps nothing: no cookies, no storage.
"use strict";

const $ = (id) => document.getElementById(id);
const state = {
  kind: "chat",      // or "completion"
  model: "",
  messages: [],      // {role, content, tool_calls}: what the next chat sends
  controller: null,  // of the request under way
  lastBody: null,    // what was sent last, for Regenerate
};

function headers() {
  const all = {"Content-Type": "application/json"};
  if ($("key").value) all.Authorization = "Bearer " + $("key").value;
  return all;
}

function say(text, bad) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

// ---- requests -------------------------------------------------------------------------------

function numberOf(id) {
  const text = $(id).value.trim();
  return text === "" ? undefined : Number(text);
}

function jsonOf(id, what) {
  const text = $(id).value.trim();
  if (text === "") return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(what + " is not JSON: " + error.message);
  }
}

// The body for what the form says. `prompt` is the text of a completion; a chat sends the messages.
function bodyOf(prompt, messages) {
  const body = {model: state.model, stream: true, stream_options: {include_usage: true}};
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    const value = numberOf(name);
    if (value !== undefined) body[name] = value;
  }
  if ($("stop-text").value !== "") body.stop = $("stop-text").value;
  const schema = jsonOf("schema", "The schema");
  if (state.kind === "chat") {
    const system = $("system").value.trim();
    body.messages = (system ? [{role: "system", content: system}] : []).concat(messages);
    const tools = jsonOf("tools", "The list of tools");
    if (tools !== undefined) body.tools = tools;
    if (schema !== undefined)
      body.response_format = {type: "json_schema", json_schema: {name: "answer", schema}};
    if ($("logprobs").checked) Object.assign(body, {logprobs: true, top_logprobs: 5});
  } else {
    body.prompt = prompt;
    if (schema !== undefined) body.structured_outputs = {json: schema};
    if ($("logprobs").checked) body.logprobs = 5;
  }
  return body;
}

function pathOf(body) {
  return body.messages ? "/v1/chat/completions" : "/v1/completions";
}

// Calls `take` with the JSON of each event of a stream. Lets the page draw and listen in between: a
// fast server always has the next piece ready.
async function readEvents(reader, take) {
  const decoder = new TextDecoder();
  let rest = "", drawn = performance.now();
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    if (performance.now() - drawn > 30) {
      $("messages").scrollTop = $("messages").scrollHeight;
      await new Promise((resume) => setTimeout(resume, 0));
      drawn = performance.now();
    }
    rest += decoder.decode(value, {stream: true});
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      take(JSON.parse(line.slice(6)));
    }
  }
}

async function errorOf(response) {
  try {
    const body = await response.json();
    return body.error.message;
  } catch (ignored) {
    return "status " + response.status;
  }
}

// ---- the conversation -----------------------------------------------------------------------

function addMessage(role, text) {
  const box = document.createElement("div");
  box.className = "message " + role;
  const name = document.createElement("strong");
  name.textContent = role;
  const content = document.createElement("span");
  content.textContent = text;
  box.append(name, content);
  $("messages").append(box);
  $("messages").scrollTop = $("messages").scrollHeight;
  return {box, content};
}

// A token with its likelihood, and the likeliest tokens in its place.
function addToken(parent, text, logprob, top) {
  const token = document.createElement("span");
  token.className = "token" + (logprob < -4 ? " unlikely" : logprob < -1.5 ? " doubtful" : "");
  token.textContent = text;
  token.tabIndex = 0;
  const percent = (p) => (100 * Math.exp(p)).toFixed(1) + " %";
  token.title = percent(logprob) + "\n" +
      top.map(([other, p]) => JSON.stringify(other) + " " + percent(p)).join("\n");
  parent.append(token);
}

function tokensOf(choice) {
  const logprobs = choice.logprobs;
  if (!logprobs) return [];
  if (logprobs.content)
    return logprobs.content.map(
        (t) => [t.token, t.logprob, (t.top_logprobs || []).map((o) => [o.token, o.logprob])]);
  if (!logprobs.tokens) return [];
  return logprobs.tokens.map((text, i) => [text, logprobs.token_logprobs[i],
    Object.entries((logprobs.top_logprobs || [])[i] || {})]);
}

function addToolCalls(calls, deltas) {
  for (const delta of deltas) {
    const call = calls[delta.index] ||= {id: "", type: "function",
                                         function: {name: "", arguments: ""}};
    if (delta.id) call.id = delta.id;
    const named = delta.function || {};
    if (named.name) call.function.name += named.name;
    if (named.arguments) call.function.arguments += named.arguments;
  }
}

function busy(on) {
  $("stop").disabled = !on;
  $("send").disabled = on;
  $("regenerate").disabled = on || !state.lastBody;
}

async function run(body) {
  const messages = state.messages;  // Clear puts another list in its place
  state.lastBody = body;
  state.controller = new AbortController();
  busy(true);
  say("Waiting for the first token");
  const begin = performance.now();
  const answer = addMessage("assistant", "");
  const calls = [];
  let text = "", first = 0, usage = null, finish = null;
  try {
    const response = await fetch(pathOf(body), {
      method: "POST", headers: headers(), body: JSON.stringify(body),
      signal: state.controller.signal});
    if (!response.ok) throw new Error(await errorOf(response));
    await readEvents(response.body.getReader(), (event) => {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      for (const choice of event.choices || []) {
        const delta = choice.delta || {};
        const piece = choice.text ?? delta.content ?? "";
        if (delta.tool_calls) addToolCalls(calls, delta.tool_calls);
        if ((piece || delta.tool_calls) && !first) {
          first = performance.now();
          say("The answer is being written");
        }
        const tokens = tokensOf(choice);
        if (tokens.length) tokens.forEach((token) => addToken(answer.content, ...token));
        else if (piece) answer.content.append(piece);
        text += piece;
        if (choice.finish_reason) finish = choice.finish_reason;
      }
    });
    $("messages").scrollTop = $("messages").scrollHeight;
    say("Finished: " + finish);
  } catch (error) {
    const stopped = error.name === "AbortError";
    say(stopped ? "Stopped" : error.message, !stopped);
    if (!text && !calls.length) answer.box.remove();
  }
  state.controller = null;
  busy(false);
  if (state.messages !== messages) return;
  for (const call of calls)
    addMessage("tool", call.function.name + "(" + call.function.arguments + ")");
  if (body.messages && (text || calls.length)) {
    const message = {role: "assistant", content: text || null};
    if (calls.length) message.tool_calls = calls;
    messages.push(message);
  } else if (body.messages) {
    takeBack(messages);
  }
  if (usage) showLast(usage, begin, first, performance.now());
}

// A message without an answer would be sent again, before the next one of the same role.
function takeBack(messages) {
  const boxes = $("messages").children;
  if (!messages.length || messages[messages.length - 1].role !== "user") return;
  const message = messages.pop();
  if (boxes.length) boxes[boxes.length - 1].remove();
  if ($("prompt").value === "") $("prompt").value = message.content;
  $("regenerate").disabled = true;
}

function showLast(usage, begin, first, end) {
  const cached = (usage.prompt_tokens_details || {}).cached_tokens || 0;
  const rate = usage.completion_tokens > 1 && end > first ?
      ((usage.completion_tokens - 1) / (end - first) * 1000).toFixed(0) + " tokens/s" : "";
  $("last").textContent = usage.prompt_tokens + " (" + cached + " reused) + " +
      usage.completion_tokens + " tokens, first after " + (first - begin).toFixed(0) + " ms, " + rate;
}

function send(event) {
  event.preventDefault();
  if (state.controller) return;
  const prompt = $("prompt").value;
  if (prompt.trim() === "") return say("Write something first", true);
  try {
    const messages = state.messages.concat([{role: "user", content: prompt}]);
    const body = bodyOf(prompt, messages);
    if (state.kind === "chat") {
      state.messages = messages;
      addMessage("user", prompt);
      $("prompt").value = "";
    } else {
      $("messages").replaceChildren();
      addMessage("prompt", prompt);
    }
    run(body);
  } catch (error) {
    say(error.message, true);
  }
}

function regenerate() {
  if (!state.lastBody || state.controller) return;
  try {
    const boxes = $("messages").children;
    while (boxes.length && boxes[boxes.length - 1].className !== "message user" &&
           boxes[boxes.length - 1].className !== "message prompt")
      boxes[boxes.length - 1].remove();
    if (state.lastBody.messages) {
      while (state.messages.length && state.messages[state.messages.length - 1].role !== "user")
        state.messages.pop();
      run(bodyOf("", state.messages));
    } else {
      run(bodyOf(state.lastBody.prompt, []));
    }
  } catch (error) {
    say(error.message, true);
  }
}

function clearAll() {
  if (state.controller) state.controller.abort();
  state.messages = [];
  state.lastBody = null;
  $("messages").replaceChildren();
  $("regenerate").disabled = true;
  say("");
}

async function copyCurl() {
  try {
    const prompt = $("prompt").value;
    const body = prompt || !state.lastBody ?
        bodyOf(prompt, state.messages.concat([{role: "user", content: prompt}])) : state.lastBody;
    const quoted = JSON.stringify(body).replace(/'/g, "'\\''");
    const key = $("key").value ? " -H 'Authorization: Bearer YOUR_KEY'" : "";
    const command = "curl -N " + location.origin + pathOf(body) +
        " -H 'Content-Type: application/json'" + key + " -d '" + quoted + "'";
    await navigator.clipboard.writeText(command);
    say("The command is in the clipboard");
  } catch (error) {
    say("The command could not be copied: " + error.message, true);
  }
}

// ---- tabs and theme -------------------------------------------------------------------------

function choose(kind) {
  if (state.kind !== kind) clearAll();
  state.kind = kind;
  const chat = kind === "chat";
  for (const name of ["chat", "completion"]) {
    $("tab-" + name).setAttribute("aria-selected", String(name === kind));
    $("tab-" + name).tabIndex = name === kind ? 0 : -1;
  }
  $("conversation").setAttribute("aria-labelledby", "tab-" + kind);
  $("prompt-label").textContent = chat ? "Message" : "Prompt";
  $("chat-only").hidden = $("tools-box").hidden = !chat;
}

function nextTheme() {
  const themes = ["system", "light", "dark"];
  const now = document.documentElement.dataset.theme || "system";
  const next = themes[(themes.indexOf(now) + 1) % themes.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  $("theme").textContent = "Theme: " + next;
}

// ---- the live panel -------------------------------------------------------------------------

const live = {tokens: null, time: 0};
const kParts = ["codes", "scales", "residual", "sinks"];

// "name{labels} value" lines as a map from the name after its prefix, with `part` where there is one.
function parseMetrics(text) {
  const values = {};
  for (const line of text.split("\n")) {
    const match = /^\w+:(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const part = /part="(\w+)"/.exec(match[2] || "");
    const name = match[1] + (part ? ":" + part[1] : "");
    values[name] = (values[name] || 0) + Number(match[3]);
  }
  return values;
}

function mebibytes(bytes) {
  return (bytes / (1 << 20)).toFixed(1) + " MiB";
}

function showMemory(m) {
  const parts = kParts.map((part, i) => [part, m["kv_cache_bytes:" + part] || 0, i]);
  const total = parts.reduce((sum, [, bytes]) => sum + bytes, 0);
  $("memory").replaceChildren(...parts.filter(([, bytes]) => bytes > 0).map(([, bytes, i]) => {
    const bar = document.createElement("span");
    bar.className = "part" + i;
    bar.style.width = 100 * bytes / total + "%";
    return bar;
  }));
  $("memory").setAttribute("aria-label", total === 0 ? "Nothing is held" :
      parts.map(([part, bytes]) => part + " " + mebibytes(bytes)).join(", "));
  const rows = parts.map(([part, bytes, i]) => [part + " " + mebibytes(bytes), i]);
  rows.push(["kept for later requests: " + (m.prefix_cache_pages || 0) + " pages, " +
             (m.prefix_cache_checkpoints || 0) + " checkpoints", 4]);
  $("legend").replaceChildren(...rows.map(([text, i]) => {
    const row = document.createElement("li");
    const color = document.createElement("i");
    color.className = "part" + i;
    row.append(color, text);
    return row;
  }));
}

// A model without a chat template can only complete.
async function lookAtModel() {
  const info = await fetch("/tokenizer_info", {headers: headers()});
  if (!info.ok || (await info.json()).chat_template) return;
  $("tab-chat").disabled = true;
  $("tab-chat").title = "This model has no chat template";
  choose("completion");
}

async function refresh() {
  try {
    if (!state.model) {
      const models = await fetch("/v1/models", {headers: headers()});
      if (models.ok) {
        state.model = (await models.json()).data[0].id;
        await lookAtModel();
        $("model-name").textContent = state.model;
      } else if (models.status === 401) {
        say("This server needs an API key");
      }
    }
    const response = await fetch("/metrics", {headers: headers()});
    if (!response.ok) throw new Error(await errorOf(response));
    const m = parseMetrics(await response.text());
    const now = performance.now();
    $("running").textContent = m.num_requests_running ?? "-";
    $("waiting").textContent = m.num_requests_waiting ?? "-";
    $("usage").textContent = m.kv_cache_usage_perc === undefined ? "-" :
        (100 * m.kv_cache_usage_perc).toFixed(1) + " %";
    if (live.tokens !== null)
      $("rate").textContent =
          ((m.generation_tokens_total - live.tokens) / (now - live.time) * 1000).toFixed(0);
    live.tokens = m.generation_tokens_total;
    live.time = now;
    $("hits").textContent = m.prefix_cache_queries_total ?
        (100 * m.prefix_cache_hits_total / m.prefix_cache_queries_total).toFixed(1) + " % of " +
        m.prefix_cache_queries_total : "-";
    showMemory(m);
    $("live-error").textContent = "";
  } catch (error) {
    $("live-error").textContent = "No figures: " + error.message;
  }
  setTimeout(refresh, document.hidden ? 5000 : 1000);
}

$("form").addEventListener("submit", send);
$("stop").addEventListener("click", () => state.controller && state.controller.abort());
$("regenerate").addEventListener("click", regenerate);
$("clear").addEventListener("click", clearAll);
$("curl").addEventListener("click", copyCurl);
$("theme").addEventListener("click", nextTheme);
for (const name of ["chat", "completion"])
  $("tab-" + name).addEventListener("click", () => choose(name));
document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  if ((event.key !== "ArrowLeft" && event.key !== "ArrowRight") || $("tab-chat").disabled) return;
  choose(state.kind === "chat" ? "completion" : "chat");
  $("tab-" + state.kind).focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.controller) state.controller.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
refresh();
