// SPDX-License-Identifier: Apache-2.0
// Shows /openapi.json: the endpoints, and the fields of their requests.
"use strict";

const byId = (id) => document.getElementById(id);

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

// A schema in a few words: "integer, 1 to 128", "string or list of string".
function inWords(schema) {
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.anyOf) return schema.anyOf.map(inWords).join(" or ");
  if (schema.type === "array") return "list" + (schema.items ? " of " + inWords(schema.items) : "");
  const words = [Array.isArray(schema.type) ? schema.type.join(" or ") : schema.type || "any value"];
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const high = schema.maximum ?? schema.exclusiveMaximum;
  const shown = (bound, limit) => bound !== undefined && Math.abs(bound) < limit;
  if (shown(low, 2147483647)) words.push((schema.minimum === undefined ? "above " : "from ") + low);
  if (shown(high, 2147483647)) words.push((schema.maximum === undefined ? "below " : "to ") + high);
  return words.join(", ");
}

function fieldsTable(schema) {
  const required = schema.required || [];
  const rows = Object.entries(schema.properties).map(([name, field]) => {
    const row = element("tr", "", element("th", name), element("td", inWords(field)),
                        element("td", (required.includes(name) ? "Required. " : "") + (field.description || "")));
    row.firstChild.scope = "row";
    row.dataset.words = (name + " " + (field.description || "")).toLowerCase();
    return row;
  });
  const head = element("tr", "", element("th", "Field"), element("th", "Value"), element("th", "Meaning"));
  for (const cell of head.children) cell.scope = "col";
  return element("table", "", element("thead", "", head), element("tbody", "", ...rows));
}

function endpoint(path, method, operation) {
  const body = operation.requestBody?.content["application/json"].schema;
  const title = element("summary", "", element("strong", method.toUpperCase() + " " + path),
                        document.createTextNode(" "), element("span", operation.summary + "."));
  const block = element("details", "", title);
  block.dataset.words = (path + " " + operation.summary).toLowerCase();
  block.append(element("p", operation.security?.length === 0 ? "Open to anyone." : "Needs a key, if the server has keys."));
  if (body) block.append(fieldsTable(body));
  return block;
}

function filter() {
  const word = byId("filter").value.trim().toLowerCase();
  let count = 0;
  for (const block of byId("paths").children) {
    const rows = [...block.querySelectorAll("tbody tr")];
    const whole = block.dataset.words.includes(word);
    const fitting = rows.filter((row) => whole || row.dataset.words.includes(word));
    for (const row of rows) row.hidden = !fitting.includes(row);
    block.hidden = !whole && fitting.length === 0;
    block.open = word !== "" && !whole && fitting.length > 0;
    count += block.hidden ? 0 : 1;
  }
  byId("status").textContent = count + (count === 1 ? " endpoint." : " endpoints.");
}

async function start() {
  try {
    const api = await (await fetch("/openapi.json")).json();
    byId("version").textContent = api.info.version;
    byId("about").textContent = api.info.description;
    for (const [path, methods] of Object.entries(api.paths))
      for (const [method, operation] of Object.entries(methods))
        byId("paths").append(endpoint(path, method, operation));
    byId("filter").addEventListener("input", filter);
    filter();
  } catch (error) {
    byId("status").textContent = "The description cannot be loaded: " + error.message;
  }
}

start();
