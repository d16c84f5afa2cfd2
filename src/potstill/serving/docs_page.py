"""The page at /docs: one piece of HTML that reads /openapi.json and asks nobody else for anything."""

from __future__ import annotations

PAGE = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Potstill: API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem } details { border-top: 1px solid #ddd; padding: .5rem 0 } summary { cursor: pointer }
code, pre { font: 13px/1.45 ui-monospace, monospace } pre { background: #f6f6f4; padding: .75rem; overflow: auto }
.method { display: inline-block; width: 4.5rem; font-weight: 600; text-transform: uppercase }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .2rem .6rem .2rem 0;
vertical-align: top } th { font-weight: 600 } .need { color: #a00 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } pre { background: #242424 }
details { border-color: #333 } .need { color: #f88 } }
</style>
<h1>Potstill: API</h1><p id="about">Loading /openapi.json ...</p><main></main>
<script>
const make = (tag, text, name) => {
  const node = document.createElement(tag); if (text) node.textContent = text; if (name) node.className = name;
  return node;
};
const type = s => !s ? "" : s.$ref ? s.$ref.split("/").pop() : s.anyOf ? s.anyOf.map(type).join(" | ")
  : s.enum ? s.enum.map(e => JSON.stringify(e)).join(" | ") : "const" in s ? JSON.stringify(s.const)
  : s.type === "array" ? "list of " + (type(s.items) || "anything") : [].concat(s.type || "anything").join(" | ");
const bounds = s => (s.anyOf || [s]).flatMap(e => ["minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength",
  "minItems", "maxItems"].filter(k => k in e).map(k => k + " " + e[k])).join(", ");
const fields = (schema, all) => {
  const table = make("table");
  for (const [name, each] of Object.entries(schema.properties || {})) {
    const row = make("tr"), first = make("td"); first.append(make("code", name));
    if ((schema.required || []).includes(name)) first.append(make("span", " needed", "need"));
    row.append(first, make("td", type(each)), make("td", bounds(each))); table.append(row);
  }
  return table;
};
fetch("openapi.json").then(reply => reply.json()).then(api => {
  document.getElementById("about").textContent =
    api.info.description + " Version " + api.info.version + ". The document: /openapi.json";
  const all = api.components.schemas, main = document.querySelector("main"), shown = new Set();
  for (const [path, operations] of Object.entries(api.paths))
    for (const [method, each] of Object.entries(operations)) {
      if (method === "parameters") continue;
      const part = make("details"), head = make("summary");
      head.append(make("span", method, "method"), make("code", path), make("span", " - " + each.summary));
      part.append(head);
      for (const [kind, body] of Object.entries((each.requestBody || {}).content || {})) {
        const name = type(body.schema), schema = all[name] || body.schema;
        part.append(make("p", "Takes " + kind + (all[name] ? ": " + name : "")), fields(schema, all));
      }
      part.append(make("p", "Answers " + Object.keys(each.responses).join(", ")));
      main.append(part);
    }
  const rest = make("details"); rest.append(make("summary", "All shapes"), make("pre", JSON.stringify(all, null, 1)));
  main.append(rest);
});
</script></html>
"""
