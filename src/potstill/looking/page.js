"use strict";
// Rows are other people's text: they enter the page as text nodes only. Which view stands in the address after "#".
const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
const PAGE = 100;

const el = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "width") node.style.width = value;
    else if (name === "href" && !String(value).startsWith("#")) continue;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false));
  return node;
};
const num = (value) => Number(value).toLocaleString("en");
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
const whole = (text) => (typeof text === "number" ? data.texts[text] : text);
const words = (name) => String(name).replaceAll("_", " ");
const tag = (text, tone) => el("span", { class: `tag ${tone || ""}` }, text);
const plural = (n, one, many) => `${num(n)} ${n === 1 ? one : many || one + "s"}`;
const link = (tab, params) => `#${tab}${params ? "?" + new URLSearchParams(params) : ""}`;
const pretty = (text) => {
  if (!/^\s*[[{]/.test(text)) return text;
  try { return JSON.stringify(JSON.parse(text), null, 1); } catch { return text; }
};

// One row in full

const turn = (each, learnt) => el("div", { class: `turn role-${each.role.replace(/\W/g, "")}` },
  el("div", { class: "who" }, each.role, each.name && el("small", null, each.name)),
  el("div", null,
    each.parts.map(([seen, ref]) => part(seen, whole(ref), each.role, learnt)),
    (each.calls || []).map((call) => el("div", { class: `call ${learnt ? "learnt" : ""}` },
      el("b", { class: "mono" }, call.name), el("pre", null, pretty(call.arguments))))));

const part = (seen, text, role, learnt) => {
  if (!text) return null;
  const shown = role === "tool" ? pretty(text) : text;
  const body = el("div", { class: `text ${role === "tool" ? "mono" : ""} ${learnt ? "learnt" : ""}`, tabindex: shown.length > 1500 ? 0 : null }, shown);
  if (seen) return body;
  if (text.length < 240) return el("div", { class: "standing" }, body);
  return el("details", { class: "standing" },
    el("summary", null, `not seen by the student, ${plural(text.length, "character")}: “${text.trim().slice(0, 90)}…”`), body);
};

const prompt = (row) => {
  const assistants = row.learn === "conversation";
  const shown = (turns) => turns.map((each) => turn(each, assistants && each.role === "assistant"));
  const dimmed = row.prompt.some((each) => each.parts.some(([seen]) => !seen));
  return [
    el("h3", null, row.student ? "Prompt as logged" : "Prompt"),
    dimmed && el("p", { class: "soft" }, "Dimmed: standing instructions that the student does not see."),
    assistants && el("p", { class: "soft" }, "Every assistant turn (marked green) is learnt."),
    el("div", null, shown(row.prompt)),
    row.student && [el("h3", null, "Prompt that the student sees (shortened)"), el("div", null, shown(row.student))],
    row.tools !== undefined && tools(whole(row.tools)),
  ];
};

const tools = (text) => {
  let names = "";
  try { names = JSON.parse(text).map((each) => (each.function || each).name).join(", "); } catch { /* cut: shown as it is */ }
  return el("details", { class: "standing" }, el("summary", null, `tools offered${names && ": " + names}`), el("pre", null, text));
};

// Two answers with what differs between their common beginning and end marked.
const marked = (text, other) => {
  if (other === null || other === undefined || text === other || text.length < 40) return [text];
  let start = 0, end = 0;
  while (start < text.length && start < other.length && text[start] === other[start]) start++;
  while (end < text.length - start && end < other.length - start && text[text.length - 1 - end] === other[other.length - 1 - end]) end++;
  return [text.slice(0, start), el("mark", null, text.slice(start, text.length - end)), text.slice(text.length - end)];
};
const answer = (title, text, tone, other) => el("div", { class: `answer ${tone || ""}` }, el("b", null, title),
  el("div", { class: "text" }, text === null ? "—" : text === "" ? el("em", { class: "soft" }, "(empty)") : marked(pretty(text), other && pretty(other))));

const facts = (pairs) => el("dl", null, pairs.filter(([, value]) => value !== undefined && value !== null && value !== "").map(
  ([name, value]) => [el("dt", null, name), el("dd", null, value)]));
const metadata = (row) => row.metadata && [el("h3", null, "Metadata"), facts(Object.entries(row.metadata))];
const audited = (row) => (row.audit || []).map((each) => el("div", { class: "note" },
  el("b", null, `Audit: ${each.finding}, ${each.action}. `), each.evidence, each.suggested && each.suggested !== row.answer ? `. Suggested: ${each.suggested}` : ""));

const ORIGINS = {
  teacher: ["as the teacher said", ""], confirmed: ["confirmed by a person", "good"],
  corrected: ["corrected by a person", "good"], changed: ["changed by the audit", "accent"],
};
if (data.overview.facts.relabel) ORIGINS.changed[0] = "changed by audit or relabelling";

const keptDetail = (row) => {
  const differ = row.answer !== row.teacher, raw = row.said !== undefined ? row.said : row.teacher;
  return el("div", { class: "detail" }, audited(row), prompt(row), el("h3", null, "Answer"),
    el("div", { class: "answers" },
      differ ? [answer(row.teacher === null ? "the teacher said (invalid)" : "the teacher said", raw, "bad", row.answer),
        answer(`learnt: ${ORIGINS[row.origin][0]}`, row.answer, "good", raw)]
        : answer(`the teacher said, and is learnt${row.origin === "confirmed" ? " (a person confirmed it)" : ""}`, row.answer, "good"),
      !differ && row.said !== undefined && answer("as logged, before it was put in canonical form", row.said)),
    el("h3", null, "Row"),
    facts([["id", el("a", { href: link("kept", { id: row.id }) }, row.id)], ["conversation", row.conversation], ["split", row.split],
      ["weight", row.weight], ["rows it stands for", row.count], ["cluster", row.cluster >= 0 ? row.cluster : null],
      ["tokens", row.prompt_tokens && `${num(row.prompt_tokens)} prompt, ${num(row.completion_tokens || 0)} answer`],
      ["latency", row.latency_ms && `${num(Math.round(row.latency_ms))} ms`], ["cost", row.cost_usd && `$${row.cost_usd}`]]),
    metadata(row));
};

const rejectedDetail = (row) => el("div", { class: "detail" },
  el("div", { class: "note" }, el("b", null, `${row.step}: `), row.reason), audited(row),
  row.withheld && el("p", null, row.withheld),
  row.prompt && prompt(row),
  row.said && [el("h3", null, "Answer"), turn(row.said)],
  row.answer !== undefined || row.teacher !== undefined ? [el("h3", null, "Answer"), el("div", { class: "answers" },
    row.teacher === row.answer ? answer("the teacher said", row.teacher)
      : [answer("the teacher said", row.teacher ?? null, "bad", row.answer), row.answer !== undefined && row.answer !== "" && answer("would have been learnt", row.answer, "good", row.teacher)])] : null,
  row.feedback && [el("h3", null, "Feedback"), row.feedback.map((each) => el("pre", null, each))],
  row.raw !== undefined && [el("h3", null, "As logged"), el("pre", null, row.raw)],
  el("h3", null, "Row"), facts([["id", row.id], ["source", row.source], ["line", row.line && num(row.line)]]), metadata(row));

// A list of rows with search, filters and order

const asks = (row) => {
  if (row.withheld) return "text withheld: twin of a sealed row";
  const turns = (row.student || row.prompt || []).filter((each) => each.role === "user");
  const said = turns.map((each) => each.parts.filter(([seen]) => seen).map(([, ref]) => whole(ref)).join(" ")).filter(Boolean);
  const text = said.at(-1) || row.raw || row.evidence || "";
  return text.trim().slice(0, 300);
};
const haystack = (row, also) => {
  const texts = [...(row.prompt || []), ...(row.student || [])].flatMap((each) => [
    ...each.parts.filter(([seen]) => seen).map(([, ref]) => whole(ref)), ...(each.calls || []).map((call) => call.name + call.arguments)]);
  const rest = [row.id, row.conversation, row.answer, row.teacher, row.said, row.reason, row.raw, row.chosen, row.rejected, row.evidence, row.finding, row.suggested];
  return [...texts, ...rest.map((each) => (typeof each === "object" && each ? JSON.stringify(each) : each)), JSON.stringify(row.metadata || ""), also || ""].join("\n").toLowerCase();
};

const rowNode = (row, view, open) => {
  const node = el("details", { class: "row", open }, el("summary", null, view.summary(row)));
  const fill = () => { if (node.open && node.childElementCount === 1) node.append(view.detail(row)); };
  node.addEventListener("toggle", fill);
  if (open) fill();
  return node;
};

const listView = (view, params, tab) => {
  const found = new Map(), chosen = Object.fromEntries(params);
  const set = (key, value) => { if (value) chosen[key] = value; else delete chosen[key]; };
  const matches = (row, except) => view.filters.every(({ key, of }) => key === except || !chosen[key] || [of(row)].flat().includes(chosen[key]));
  const text = (row) => found.get(row) || found.set(row, haystack(row, view.also && view.also(row))).get(row);
  const search = el("input", { type: "search", placeholder: "text, id, metadata …", value: chosen.q || "", oninput: () => { set("q", search.value); later(); } });
  const toolbar = el("div", { class: "tools", role: "search" }), count = el("div", { class: "count", "aria-live": "polite" });
  const list = el("div", { class: "list" }), more = el("button", { class: "more", onclick: () => draw(true) });
  let timer, at = 0, rows = [];
  const later = () => { clearTimeout(timer); timer = setTimeout(update, 120); };
  const controls = view.filters.map((filter) => ({ filter, select: el("select", { onchange: () => { set(filter.key, controls.find((each) => each.filter === filter).select.value); update(); } }) }));
  const order = el("select", { onchange: () => { set("sort", order.value); update(); } }, view.sorts.map(([name]) => el("option", { value: name, selected: name === chosen.sort }, name)));
  toolbar.append(el("label", { class: "search" }, "search (press /)", search),
    ...controls.map(({ filter, select }) => el("label", null, filter.label, select)), el("label", null, "order", order),
    el("label", null, "\u00a0", el("button", { onclick: () => { location.hash = tab; route(true); } }, "Clear")));

  const options = () => controls.forEach(({ filter, select }) => {
    const counts = new Map();
    for (const row of view.rows) if (matches(row, filter.key)) for (const value of [filter.of(row)].flat()) counts.set(value, (counts.get(value) || 0) + 1);
    if (chosen[filter.key] && !counts.has(chosen[filter.key])) counts.set(chosen[filter.key], 0);
    const sorted = [...counts].sort((a, b) => (filter.numeric ? Number(a[0]) - Number(b[0]) : b[1] - a[1] || (a[0] < b[0] ? -1 : 1)));
    select.replaceChildren(el("option", { value: "" }, "all"), ...sorted.map(([value, n]) => el("option", { value, selected: value === chosen[filter.key] }, `${filter.name ? filter.name(value) : value} (${num(n)})`)));
    select.parentElement.classList.toggle("on", Boolean(chosen[filter.key]));
    select.parentElement.hidden = counts.size < 2 && !chosen[filter.key];
  });
  const draw = (further) => {
    if (!further) { list.replaceChildren(); at = 0; }
    const pinned = chosen.id && rows.length === 1;
    for (const row of rows.slice(at, at + PAGE)) {
      const heading = view.heading && view.heading(row);
      if (heading && (at === 0 || heading !== view.heading(rows[at - 1])) && (!chosen.sort || chosen.sort === view.sorts[0][0])) list.append(el("h3", null, heading));
      list.append(rowNode(row, view, pinned));
      at++;
    }
    more.hidden = at >= rows.length;
    more.textContent = `Show ${num(Math.min(PAGE, rows.length - at))} more of ${num(rows.length - at)}`;
  };
  const update = () => {
    const text_ = (chosen.q || "").toLowerCase();
    const pool = chosen.id ? view.byId(chosen.id) : view.rows;
    rows = pool.filter((row) => chosen.id || (matches(row) && (!text_ || text(row).includes(text_))));
    const compare = (view.sorts.find(([name]) => name === chosen.sort) || view.sorts[0])[1];
    if (compare) rows = rows.map((row) => [compare(row), row]).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)).map(([, row]) => row);
    options();
    count.replaceChildren(el("span", null, el("strong", null, plural(rows.length, ...view.noun)), rows.length === view.rows.length ? "" : ` of ${num(view.rows.length)} on this page`),
      view.shown, chosen.id ? el("a", { href: link(tab) }, "all rows") : "");
    if (view.pressed) view.pressed(chosen);
    draw(false);
    if (!rows.length) list.append(el("p", { class: "empty" }, chosen.id ? `No row ${chosen.id} on this page; the Parquet files hold all.` : view.rows.length ? "Nothing matches." : view.none));
    history.replaceState(null, "", link(tab, Object.keys(chosen).length ? chosen : null));
  };
  view.choose = (key, value) => { delete chosen.id; set(key, chosen[key] === value ? "" : value); update(); };
  update();
  return [view.top, toolbar, count, list, more];
};
const shownOf = (shown, total, how) => shown < total ? el("span", { class: "unclear" }, `shown ${num(shown)} of ${num(total)}, ${how}; raise --rows for more`) : el("span", null, `all ${num(total)} shown`);

const gives = (row) => row.answer === row.teacher || row.teacher === undefined ? el("span", { class: "gives" }, broken(row.answer))
  : el("span", { class: "gives" }, el("del", null, broken(row.teacher ?? row.said ?? "(invalid)")), row.answer ? el("ins", null, broken(row.answer)) : null);
const brief = (text) => { const said = String(text ?? "").trim(); return said.length > 160 ? said.slice(0, 160) + "…" : said; };
// Labels such as card_not_working may break after an underscore.
const broken = (text) => brief(text).split(/(?<=[_/])/).flatMap((piece, at) => (at ? [el("wbr"), piece] : [piece]));
const AUDIT_TONE = { drop: "bad", relabel: "accent", reweight: "unclear", keep: "" };
