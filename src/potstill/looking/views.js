// The views, one a tab. What they are made of stands in page.js.

const kept = data.kept.ids.map((id) => data.rows[id]);
const leftOut = data.rejected.numbers.map((at) => data.left_out[at]);
const byId = new Map(Object.values(data.left_out).filter((row) => row.id && row.step !== "read").map((row) => [row.id, row]));
const suspects = data.suspects.list.map((each) => ({ ...each, row: data.rows[each.id], out: data.rows[each.id] ? null : byId.get(each.id) }));

const sourceOf = (row) => ORIGINS[row.origin][0];

const keptView = () => {
  const answers = new Set(kept.map((row) => row.answer));
  return {
    rows: kept, noun: ["row", "rows"], none: "The dataset has no rows.", detail: keptDetail,
    byId: (id) => (data.rows[id] ? [data.rows[id]] : []), also: sourceOf,
    shown: shownOf(kept.length, data.kept.total, "evenly chosen"),
    filters: [
      { key: "split", label: "split", of: (row) => row.split },
      answers.size <= Math.min(400, kept.length / 2) && { key: "answer", label: "answer", of: (row) => row.answer, name: (value) => brief(value).slice(0, 60) },
      { key: "learnt", label: "whose answer is learnt", of: sourceOf },
      { key: "weight", label: "weight", of: (row) => String(row.weight), numeric: true },
      { key: "count", label: "stands for", of: (row) => String(row.count), numeric: true, name: (value) => plural(Number(value), "row") },
    ].filter(Boolean),
    sorts: [["as stored", null], ["answer", (row) => row.answer], ["most duplicates", (row) => -row.count], ["heaviest", (row) => -row.weight],
      ["longest prompt", (row) => -row.prompt.reduce((sum, each) => sum + each.parts.reduce((n, [, ref]) => n + whole(ref).length, 0), 0)],
      ["worst by the audit", (row) => -(row.audit ? row.audit[0].score : -1)]],
    summary: (row) => [el("span", { class: "asks" }, asks(row)), gives(row), el("span", { class: "tags" },
      row.origin !== "teacher" && tag(sourceOf(row), ORIGINS[row.origin][1]), row.learn === "conversation" && tag("whole conversation", "accent"),
      row.split !== "train" && tag(row.split), row.count > 1 && tag(`stands for ${num(row.count)}`), row.weight !== 1 && tag(`weight ${row.weight}`, "unclear"))],
  };
};

const rejectedView = () => {
  const groups = Object.entries(data.rejected.groups);
  const chips = groups.map(([kind, n]) => el("button", { class: "chip", "aria-pressed": "false", onclick: () => view.choose("reason", kind) }, el("b", null, num(n)), kind));
  const rank = new Map(groups.map(([kind], at) => [kind, at]));
  const view = {
    rows: leftOut.slice().sort((a, b) => rank.get(a.kind) - rank.get(b.kind)), noun: ["row left out", "rows left out"], none: "No row was left out.", detail: rejectedDetail,
    byId: (id) => Object.values(data.left_out).filter((row) => row.id === id),
    shown: shownOf(leftOut.length, data.rejected.total, "every reason's fair share, evenly chosen"),
    top: [el("p", { class: "soft" }, "Every row that was left out, by step and reason; a reason filters the rows below. Twins of test rows are shown without their text. What was left out before the split may still ask what a sealed row asks."), el("div", { class: "reasons" }, chips)],
    pressed: (chosen) => chips.forEach((chip, at) => chip.setAttribute("aria-pressed", String(groups[at][0] === chosen.reason))),
    filters: [{ key: "step", label: "step", of: (row) => row.step }, { key: "reason", label: "reason", of: (row) => row.kind }],
    sorts: [["by reason", null], ["as logged", (row) => row.line ?? 0], ["answer", (row) => String(row.answer ?? "")]],
    heading: (row) => `${row.kind} (${num(data.rejected.groups[row.kind] || 0)})`,
    summary: (row) => [el("span", { class: "asks" }, asks(row)), row.prompt && row.answer !== undefined ? gives(row) : el("span", { class: "gives" }, row.said ? brief(row.said.parts.map(([, ref]) => whole(ref)).join(" ") || (row.said.calls || []).map((call) => call.name + "()").join(", ")) : ""),
      el("span", { class: "tags" }, el("span", { class: "soft" }, row.reason.slice(0, 120)))],
  };
  return view;
};

const folded = (member, view) => {
  const row = data.left_out[member.number];
  return row ? rowNode(row, view) : el("p", { class: "soft" }, `${member.id}: ${member.reason}`);
};
const clusterView = () => {
  const inner = { kept: { ...keptView() }, out: { ...rejectedView() } };
  const rows = data.clusters.list.map((each) => ({ ...each, id: String(each.cluster), rows: each.kept.map((id) => data.rows[id]).filter(Boolean), members: each.folded.map((member) => data.left_out[member.number]).filter(Boolean) }));
  return {
    rows, noun: ["cluster", "clusters"], none: "No two rows are duplicates of each other.", byId: (id) => rows.filter((row) => row.id === id),
    also: (row) => [...row.rows, ...row.members].map((each) => haystack(each)).join("\n"),
    shown: shownOf(rows.length, data.clusters.total, "largest first"),
    top: el("p", { class: "soft" }, "Rows that ask nearly the same. One is kept and stands for the others; rows that people corrected differently, or that end at another turn of a conversation, are kept apart."),
    filters: [{ key: "answers", label: "answers in the cluster", of: (row) => (new Set([...row.rows, ...row.members].map((each) => each.answer)).size > 1 ? "different" : "the same") },
      { key: "kept", label: "rows kept", of: (row) => String(row.kept.length), numeric: true }],
    sorts: [["largest first", null], ["most rows kept apart", (row) => -row.kept.length]],
    summary: (row) => [el("span", { class: "asks" }, row.rows.length ? asks(row.rows[0]) : ""), el("span", { class: "gives" }, broken(row.rows.map((each) => each.answer).join(" · "))),
      el("span", { class: "tags" }, tag(plural(row.size, "row"), "accent"), tag(`${num(row.kept.length)} kept`), row.folds ? tag(`${num(row.folds)} folded`) : null)],
    detail: (row) => el("div", { class: "detail" }, el("h3", null, "Kept"), row.rows.map((each) => rowNode(each, inner.kept)),
      row.folds ? [el("h3", null, `Folded in (${num(row.folds)})`), row.folded.map((each) => folded(each, inner.out))] : null,
      row.folds > row.folded.length && el("p", { class: "soft" }, `${num(row.folds - row.folded.length)} more are not shown here.`)),
  };
};

const score = (each) => (each.id ? (each.score > 0.9994 ? "over 99.9 %" : percent(each.score)) : plural(each.score, "correction"));
const suspectView = () => ({
  rows: suspects, noun: ["finding", "findings"], none: "The audit found nothing to doubt (or did not run).", byId: (id) => suspects.filter((each) => each.id === id),
  shown: shownOf(suspects.length, data.suspects.total, "worst first"),
  also: (each) => { const row = each.row || each.out; return row ? haystack(row) : ""; },
  top: el("p", { class: "soft" }, "Answers that the audit doubts, worst first: struck out is what the teacher said, below it what was suggested. The percentage is the probability that the teacher is wrong."),
  filters: [{ key: "finding", label: "finding", of: (each) => each.finding }, { key: "action", label: "what was done", of: (each) => each.action },
    { key: "teacher", label: "teacher said", of: (each) => String(each.teacher ?? "—"), name: (value) => brief(value).slice(0, 60) },
    { key: "suggested", label: "suggested", of: (each) => String(each.suggested ?? "—"), name: (value) => brief(value).slice(0, 60) }],
  heading: (each) => (each.id ? "Answers in doubt" : `Prompts in doubt: ${each.finding}`),
  sorts: [["worst first", null], ["least doubtful first", (each) => (each.id ? each.score : 2)], ["finding", (each) => each.finding], ["teacher's answer", (each) => String(each.teacher)], ["suggested answer", (each) => String(each.suggested)], ["action", (each) => each.action]],
  summary: (each) => {
    const row = each.row || each.out;
    return [el("span", { class: "asks" }, each.id ? (row ? asks(row) : each.evidence) : each.evidence), el("span", { class: "gives" }, each.teacher !== null && (each.teacher === each.suggested ? broken(each.teacher) : el("del", null, broken(each.teacher))), each.suggested !== null && each.suggested !== each.teacher && el("ins", null, broken(each.suggested))),
      el("span", { class: "tags" }, each.id ? [tag(each.finding), tag(`wrong: ${score(each)}`, each.score > 0.9 ? "bad" : "unclear")] : tag(score(each), each.score ? "bad" : ""), tag(each.action, AUDIT_TONE[each.action]))];
  },
  detail: (each) => {
    const row = each.row || each.out;
    const body = row ? (each.row ? keptDetail(row) : rejectedDetail(row)) : el("div", { class: "detail" }, el("div", { class: "note" }, each.evidence));
    if (row) body.prepend(el("p", { class: "soft" }, el("a", { href: link(each.row ? "kept" : "rejected", { id: each.id }) }, each.row ? "Kept" : "Left out"), ` · ${each.finding} · ${each.action} · wrong with a probability of ${score(each)}`));
    return body;
  },
});

const preferenceView = () => {
  const pairs = data.preferences.list.map((each) => ({ ...each, kind: "pair" }));
  const single = data.opinions.list.map((each) => ({ ...each, kind: each.desirable ? "wanted answer" : "unwanted answer" }));
  const rows = [...pairs, ...single], total = data.preferences.total + data.opinions.total;
  return {
    rows, noun: ["preference", "preferences"], none: "The log shows no preferences: no corrections, thumbs or regenerated answers.", byId: (id) => rows.filter((row) => row.id === id),
    shown: shownOf(rows.length, total, "evenly chosen"),
    top: el("p", { class: "soft" }, `${plural(data.preferences.total, "pair")} of a chosen and a rejected answer (for DPO) and ${plural(data.opinions.total, "single opinion")} (for KTO), of training and validation. Struck out: the answer that is not wanted.`),
    filters: [{ key: "kind", label: "kind", of: (row) => row.kind }, { key: "source", label: "shown by", of: (row) => row.source }, { key: "split", label: "split", of: (row) => row.split }],
    sorts: [["as stored", null], ["wanted answer", (row) => String(row.chosen ?? row.answer)]],
    summary: (row) => [el("span", { class: "asks" }, asks(row)), el("span", { class: "gives" }, row.kind === "pair" ? [el("del", null, broken(row.rejected)), el("ins", null, broken(row.chosen))] : el(row.desirable ? "ins" : "del", null, broken(row.answer))),
      el("span", { class: "tags" }, tag(row.kind, row.kind === "pair" ? "accent" : row.desirable ? "good" : "bad"), tag(row.source), row.split !== "train" && tag(row.split))],
    detail: (row) => el("div", { class: "detail" }, prompt(row), el("h3", null, row.kind === "pair" ? "Answers" : "Answer"), el("div", { class: "answers" },
      row.kind === "pair" ? [answer("chosen", row.chosen, "good", row.rejected), answer("rejected", row.rejected, "bad", row.chosen)] : answer(row.kind, row.answer, row.desirable ? "good" : "bad")),
      el("h3", null, "Row"), facts([["id", row.id], ["conversation", row.conversation], ["shown by", row.source], ["split", row.split]]), metadata(row)),
  };
};

// Overview

const table = (heads, rows) => el("div", { class: "scroll" }, el("table", { class: "stack" },
  el("thead", null, el("tr", null, heads.map((head) => el("th", null, head)))),
  el("tbody", null, rows.map((row) => el("tr", null, row.map((cell, at) => el("td", { "data-label": heads[at], class: at ? null : "first" }, el("span", null, typeof cell === "number" ? num(cell) : cell)))))) ));
const bar = (...segments) => el("div", { class: "bar", "aria-hidden": "true" }, segments.map(([share, tone]) => el("i", { class: tone, width: `${100 * share}%` })));
const estimate = (found) => (found.value === null || found.value === undefined ? null : `${percent(found.value)} [${percent(found.low)}, ${percent(found.high)}]`);

const headline = (all, teacher) => el("div", { class: "cards" },
  Object.entries(all.rows || {}).map(([name, n]) => el("div", { class: "card" }, el("b", null, num(n)), el("span", null, name === "test" ? "sealed test rows" : `${name} rows`), name === "test" && el("small", null, "never opened here"))),
  el("div", { class: "card" }, el("b", null, num(data.rejected.total)), el("span", null, "rows left out"), el("small", null, el("a", { href: link("rejected") }, "each with its reason"))),
  teacher && el("div", { class: "card" }, el("b", null, teacher.value === null ? "not known" : percent(teacher.value)), el("span", null, "of the teacher's answers right"),
    el("small", null, teacher.value === null ? teacher.why_none : `estimated, ${percent(teacher.low)} to ${percent(teacher.high)}`)));

const flowOf = (flow) => {
  const most = Math.max(flow.lines, flow.lines + flow.made, 1);
  const line = (name, n, lost) => [el("span", { class: "step" }, name), bar([n / most, ""], ...(lost ? [[lost / most, "lost"]] : [])), el("span", { class: "n" }, num(n))];
  return el("div", { class: "flow" }, line("logged lines", flow.lines),
    flow.made > 0 && line(`+ ${num(flow.made)} turns of histories`, flow.lines + flow.made),
    flow.made < 0 && line(`${num(-flow.made)} lines are part of another's exchange`, flow.lines + flow.made),
    flow.steps.map((each) => [line(each.step, each.left, each.lost), el("div", { class: "what soft" }, `− ${num(each.lost)} ${each.what}: `,
      el("span", { class: "reasons" }, each.kinds.map(([kind, n]) => el("a", { class: "chip", href: link("rejected", { reason: kind }) }, el("b", null, num(n)), kind.slice(each.step.length + 2) || kind))))]),
    line("in the dataset", flow.held), el("div", { class: "what soft" }, Object.entries(data.overview.facts.rows || {}).map(([name, n]) => `${num(n)} ${name === "test" ? "sealed test" : name}`).join(", ")));
};

const learntOf = (origins, answers) => {
  const total = Object.values(origins).reduce((a, b) => a + b, 0), most = Math.max(1, ...answers.map((each) => Math.max(each.learnt, each.said)));
  return [el("h2", null, "What is learnt"), el("p", { class: "soft" }, "Of training and validation. A line opens its rows."),
    el("div", { class: "answer-rows" }, Object.entries(ORIGINS).filter(([name]) => origins[name]).map(([name, [label, tone]]) => el("a", { href: link("kept", { learnt: label }) },
      el("span", null, label), bar([origins[name] / total, tone === "good" ? "good" : ""]), el("em", null, `${num(origins[name])} · ${percent(origins[name] / total)}`)))),
    answers.length ? el("details", { open: answers.length <= 12 }, el("summary", null, el("b", null, `${plural(answers.length, "answer")}, by rows`)), el("p", { class: "soft" }, "Rows that learn it, and how many more or fewer the teacher gave it."),
      el("div", { class: "answer-rows" }, answers.map((each) => el("a", { href: link("kept", { answer: each.answer }), title: `${each.answer}: learnt ${num(each.learnt)}, the teacher said ${num(each.said)}` },
        el("span", null, each.answer || "(empty)"), bar([each.learnt / most, ""]), el("em", null, num(each.learnt), each.said !== each.learnt && ` (teacher ${each.said > each.learnt ? "+" : "−"}${num(Math.abs(each.said - each.learnt))})`))))) : null];
};

const auditOf = (audit) => audit && audit.enabled && [el("h2", null, "Audit of the teacher"),
  el("p", null, audit.teacher.value === null ? `No estimate of the teacher's accuracy: ${audit.teacher.why_none}.` : `Right in an estimated ${estimate(audit.teacher)} of its answers: it agrees with ${num(audit.teacher.agreed)} of ${plural(audit.teacher.corrected, "correction")}. This assumes that ${audit.teacher.assumes}.`),
  Object.keys(audit.actions || {}).length > 0 && el("div", { class: "reasons" }, Object.entries(audit.actions).map(([name, n]) => {
    const [finding, action] = name.split(": ");
    return el("a", { class: "chip", href: link("suspects", { finding, action }) }, el("b", null, num(n)), name);
  })),
  (audit.prompt_versions || []).length > 0 && [el("h3", null, "Prompt versions in the log"), table(["version", "begins", "rows", "labels offered", "lacking", "invalid answers", "teacher right"],
    audit.prompt_versions.map((each) => [el("code", null, each.version), each.begins, each.rows, each.offers ?? "no list", (each.lacks || []).length ? el("details", null, el("summary", null, num(each.lacks.length)), each.lacks.join(", ")) : 0, each.invalid, estimate(each.teacher) || (each.teacher.corrected ? `${num(each.teacher.agreed)} of ${num(each.teacher.corrected)}` : "not known")]))]];

const ruleOf = (rule) => [el("h2", null, "Prompt"), rule && (rule.drops.length || rule.strips.length) ? [el("p", null, "Internalised: the student is trained, evaluated and served without these standing instructions."),
  rule.drops.map((each) => el("details", null, el("summary", null, `${each.role} message left out, ${plural(each.text.length, "character")}: “${each.text.slice(0, 80)}…”`), el("pre", null, each.text))),
  rule.strips.map((each) => el("details", null, el("summary", null, `frame of the ${each.role} message removed: “${each.prefix.trim().slice(0, 80)}…”`), el("pre", null, `${each.prefix}⟨what the user says⟩${each.suffix}`)))] : el("p", null, "Kept as logged.")];

const counts = (title, found, none) => el("div", null, el("h2", null, title), Object.keys(found || {}).length ? facts(Object.entries(found).map(([name, n]) => [words(name), typeof n === "number" ? num(n) : String(n)])) : el("p", { class: "soft" }, none));
const leakageOf = (leakage) => {
  const found = Object.entries(leakage || {}), overlaps = found.filter(([, n]) => n);
  return el("div", null, el("h2", null, "Leakage"), overlaps.length ? facts(overlaps.map(([name, n]) => [name, el("b", { class: "bad" }, num(n))])) : el("p", null, el("span", { class: "tag good" }, "none"), ` ${plural(found.length, "comparison")} of the splits share nothing.`),
    el("details", null, el("summary", null, "What was compared"), facts(found.map(([name, n]) => [name, num(n)]))));
};

const overview = () => {
  const { facts: all, flow, origins, answers, card, made } = data.overview;
  const sources = all.poisoning || [];
  return [headline(all, all.audit && all.audit.enabled ? all.audit.teacher : null),
    el("h2", null, "From log to dataset"), el("p", { class: "soft" }, "Rows that are left after each step (red: what it left out). A reason opens its rows."), flowOf(flow),
    all.steps && el("details", null, el("summary", null, "Counts as the manifest has them"), facts(Object.entries(all.steps).map(([name, n]) => [name, num(n)]))),
    learntOf(origins, answers), auditOf(all.audit),
    all.relabel && counts("Teacher asked again", Object.fromEntries(Object.entries(all.relabel).filter(([, value]) => typeof value !== "object")), ""),
    sources.length > 0 && [el("h2", null, "Sources that stand out"), table(["source", "label", "here", "elsewhere", "p (Holm)"], sources.map((each) => [`${each.source} ${each.value}`, each.from ? `${each.from} → ${each.label}` : each.label, `${num(each.count)} of ${num(each.of)}`, `${num(each.count_elsewhere)} of ${num(each.of_elsewhere)}`, Number(each.p).toExponential(1)]))],
    ruleOf(all.prompt_rule),
    el("div", { class: "pair" }, leakageOf(all.leakage), counts("Redacted before anything was written", all.redacted, "Nothing was found.")),
    all.lengths && [el("h2", null, "Lengths"), table(["split", "part", "median", "p95", "longest", "unit"], Object.entries(all.lengths).flatMap(([split, parts]) => Object.entries(parts).map(([name, each]) => [split, name, each.median, each.p95, each.longest, each.unit])))],
    el("h2", null, "How it was made"), el("pre", null, made.command), facts([["created", made.created], ["dataset", el("code", null, made.digest)], ["potstill", `${made.potstill}${made.commit ? ", commit " + made.commit.slice(0, 12) : ""}`],
      ...made.inputs.map((each) => [words(each.role), [el("code", null, each.digest.slice(0, 16)), ` ${each.path}`]])]),
    card && el("details", null, el("summary", null, "Data card (card.md)"), el("pre", null, card))];
};

// Tabs

const TABS = [["overview", "Overview", null], ["kept", "Kept rows", data.kept.total], ["rejected", "Rejected", data.rejected.total], ["clusters", "Clusters", data.clusters.total],
  ["suspects", "Suspects", data.suspects.total], ["preferences", "Preferences", data.preferences.total + data.opinions.total]];
const VIEWS = { kept: keptView, rejected: rejectedView, clusters: clusterView, suspects: suspectView, preferences: preferenceView };
const bar_ = document.getElementById("tabs");
const buttons = TABS.map(([name, label, n]) => el("button", { role: "tab", id: `tab-${name}`, "aria-controls": "main", onclick: () => { location.hash = name; } }, label, n !== null && el("small", null, num(n))));
bar_.append(...buttons);
bar_.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const at = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
  buttons[at].focus();
  location.hash = TABS[at][0];
});

const centre = () => {
  const button = buttons.find((each) => each.getAttribute("aria-selected") === "true");
  bar_.scrollLeft = button.offsetLeft - bar_.offsetLeft - (bar_.clientWidth - button.offsetWidth) / 2;
};
const route = () => {
  const [name, query] = location.hash.slice(1).split(/\?(.*)/s);
  const tab = TABS.some(([each]) => each === name) ? name : "overview";
  buttons.forEach((button, at) => {
    const on = TABS[at][0] === tab;
    button.setAttribute("aria-selected", String(on));
    button.tabIndex = on ? 0 : -1;
  });
  centre();
  main.setAttribute("aria-labelledby", `tab-${tab}`);
  main.dataset.tab = tab;
  main.replaceChildren(...[tab === "overview" ? overview() : listView(VIEWS[tab](), new URLSearchParams(query || ""), tab)].flat(Infinity).filter((each) => each));
  window.scrollTo(0, 0);
};
document.getElementById("title").replaceChildren(data.name, el("span", null, ` · ${data.folder}`));
window.addEventListener("hashchange", route);
window.addEventListener("resize", centre);
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
  if (event.key === "Escape" && typing) document.activeElement.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const search = main.querySelector("input[type=search]");
  if (event.key === "/" && search) { event.preventDefault(); search.focus(); }
  if (event.key !== "j" && event.key !== "k") return;
  const lines = [...main.querySelectorAll(".list > details > summary")], at = lines.indexOf(document.activeElement);
  const next = lines[Math.max(0, Math.min(lines.length - 1, at + (event.key === "j" ? 1 : -1)))];
  if (next) next.focus();
});
route();
