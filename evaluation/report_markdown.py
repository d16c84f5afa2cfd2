"""report.md: the report in GitHub's Markdown, for a pull request, in the order of the page.

Text that a model or a customer wrote is escaped, so that nothing in it is markup, a link, a
mention or the end of a table cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from potstill.manifest import write_atomically
from potstill.records import Json
from potstill.tasks import Task

from .page import numbers
from .page.answers import five_answers, main_comparison
from .page.columns import kl_of, remarks_of, speeds_of
from .page.confusion import MISTAKES, mistakes_of
from .page.differences import KINDS, Disagreement, disagreements, fitting
from .page.frontier import frontiers
from .page.render import read_plan
from .page.sections import (
    Slice,
    Table,
    changes_of,
    lost_on_the_way,
    plan_of,
    seeds_of,
    sequence_of,
    slices_of,
    tables_of,
)
from .page.text import short, visible
from .report import Predictions
from .rows import HeldOut

DIFFERING_ROWS = 30
SLICES = 40
CHARACTERS = 160
SOURCES = {"gold": "gold", "corrections": "corrected rows", None: "nothing, for there is no gold,"}
_NAME = re.compile(r"[\w:./ -]+", re.ASCII)
# What Markdown or GitHub gives a meaning: emphasis, code, tags, links, tables, mathematics, emoji, addresses, a list.
_MARKUP = re.compile(
    r"[\\`*<>|~$]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|:(?=//)|:(?=[a-z+-][\w+-]*:)|&(?=[#\w])|(?<=www)\."
    r"|^[-+](?=[\s-]|$)|^[=\[]",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")
_BY_REFERENCE = {"\\": "&#92;", "|": "&#124;", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
_REFERENCE = re.compile("[@#]")  # a mention or an issue, found in the finished page: only another element stops that


def write_markdown(path: Path, report: Json, rows: HeldOut, predictions: Predictions, task: Task) -> None:
    """Write report.md; plan.json is read beside it, where there is one."""
    gate = report["gate"]
    differing = disagreements(rows, predictions, gate["candidate"], gate["baseline"], task)
    write_atomically(path, markdown_of(report, differing, read_plan(path.parent)).encode("utf-8"))


def markdown_of(report: Json, differing: Sequence[Disagreement], plan: Json | None = None) -> str:
    """The report as Markdown text."""
    slices = slices_of(report)
    tally = {kind: sum(1 for each in differing if each.kind == kind) for kind in KINDS}
    parts = [
        _first(report),
        _answers(report, tally, slices),
        _candidates(report),
        _seeds(report),
        _differences(report),
        _slices(report, slices),
        _confusions(report),
        _rows(report, differing, tally),
        _tables(tables_of(report)),
        _data(report),
        _lineage(report),
        _plan(plan_of(report, plan), changes_of(report)),
        _command(report),
    ]
    return "\n\n".join(each for each in parts if each) + "\n"


def text(words: object, most: int | None = None) -> str:
    """Words as a table cell or a line: on one line, nothing in them markup."""
    found = visible(str(words))
    found = " ".join((short(found, most) if most else found).split())
    found = _REFERENCE.sub("<span>\\g<0></span>", _MARKUP.sub(_escaped, found).replace("&#", "\0"))
    return _NUMBERED.sub(r"\1\\\2", found.replace("\0", "&#"))


def _escaped(found: re.Match[str]) -> str:
    return _BY_REFERENCE.get(found[0], f"\\{found[0]}")


def code(words: object) -> str:
    """A name in code; as text where it holds more than the characters of a name."""
    found = str(words)
    return f"`{found.strip()}`" if _NAME.fullmatch(found) and found.strip() else text(found)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """A pipe table; the last `right` columns flush right. Cells are Markdown already."""
    rules = ["---"] * (len(columns) - right) + ["---:"] * right
    return "\n".join(f"| {' | '.join(each)} |" for each in [columns, rules, *rows])


def _first(report: Json) -> str:
    gate, main = report["gate"], main_comparison(report)
    lines = [
        f"# {text(report['name'])}: evaluation of {code(gate['candidate'])}, {text(report['created'][:10])}",
        f"**{text(report['headline']['title'])}**",
    ]
    state = "Gate passed" if gate["passed"] else "Gate refused"
    if main is not None:
        state += (
            f": {numbers.points(main['difference'])} points {numbers.points_span(main)} against a margin of "
            f"{main['margin'] * 100:g}, {100 * (1 - report['settings']['alpha']):g} % interval"
        )
    return "\n\n".join([*lines, f"{state}.", "\n".join(f"- {text(each)}" for each in gate["reasons"])])


def _answers(report: Json, tally: dict[str, int], slices: Sequence[Slice]) -> str:
    rows = [
        (f"**{each.question}**", f"**{text(each.answer)}**" + "".join(f"<br>{text(line)}" for line in each.lines))
        for each in five_answers(report, tally, slices)
    ]
    return table(("question", "answer"), rows)


def _candidates(report: Json) -> str:
    entries = report["candidates"]
    worse: dict[str, list[str]] = {}
    for plot in frontiers(entries, report["gate"]["basis"]):
        for name, by in plot["dominated"].items():
            worse.setdefault(name, []).append(f"{plot['key']}: {by}")
    kl, speeds = kl_of(entries), speeds_of(entries)
    columns = ["candidate", "quality", "agreement", "valid", "p50", "p95", "per 1000", "per correct", "size"]
    columns += (["tokens/s"] if speeds else []) + (["KL"] if kl else []) + (["dominated in"] if worse else [])
    rows = []
    for name, entry in entries.items():
        row = [
            code(name), _figure(entry["quality"]), "itself" if name == "teacher" else _figure(entry["agreement"]),
            numbers.percent(entry["valid_rate"]), numbers.milliseconds(entry["latency_ms"]["p50"]),
            numbers.milliseconds(entry["latency_ms"]["p95"]), text(numbers.usd(entry["cost"]["usd_per_thousand"])),
            text(numbers.usd(entry["cost"]["usd_per_correct"])), numbers.size(entry["size_bytes"]),
        ]  # fmt: skip
        row += [numbers.count(speeds.get(name))] if speeds else []
        row += [numbers.plain(kl.get(name))] if kl else []
        row += [text("; ".join(worse.get(name, [])) or "–")] if worse else []
        rows.append(row)
    remarks = "\n".join(f"- {text(each)}" for each in remarks_of(entries))
    said = (
        f"{numbers.count(report['rows']['evaluated'])} held-out rows of "
        f"{numbers.count(report['rows']['conversations'])} conversations. {text(report['metric'])} on "
        f"{SOURCES[report['rows']['quality_source']]} (quality) and against the teacher's answers "
        "(agreement), with intervals."
    )
    return "\n\n".join(each for each in ("## Candidates", said, table(columns, rows), remarks) if each)


def _figure(figure: Json | None) -> str:
    return "not known" if figure is None else f"{numbers.percent(figure['value'])} {numbers.span(figure)}"


def _seeds(report: Json) -> str:
    seeds = seeds_of(report)
    if not seeds:
        return ""
    columns = list(seeds[0])
    rows = [[text(numbers.plain(each.get(key))) for key in columns] for each in seeds]
    return "## Training seeds\n\n" + table([text(key) for key in columns], rows)


def _differences(report: Json) -> str:
    rows = [
        (
            code(each["candidate"]), code(each["baseline"]), numbers.points(each["difference"]),
            numbers.points_span(each), each["verdict"].replace("_", "-"), numbers.count(each["n"]),
            numbers.count(each["wins"]), numbers.count(each["losses"]), numbers.count(each["rows_needed"]),
        )
        for each in report["comparisons"]
    ]  # fmt: skip
    columns = (
        "candidate",
        "baseline",
        "points",
        "interval",
        "verdict",
        "rows",
        "won",
        "lost",
        "rows that would decide",
    )
    said = f"Candidate minus baseline in {text(report['metric'])}, paired on the same rows."
    if not rows:
        return "## Differences\n\nNothing to compare."
    return f"## Differences\n\n{said}\n\n{table(columns, rows, 4)}" + _sequence(report)


def _sequence(report: Json) -> str:
    rows = [
        (
            code(each["candidate"]), numbers.size(each.get("size_bytes")),
            "–" if each.get("difference") is None
            else f"{numbers.points(each['difference'])} {numbers.points_span(each)}",
            "not tested" if not each.get("tested") else "passed" if each.get("passed") else "did not pass",
        )
        for each in sequence_of(report)
    ]  # fmt: skip
    said = "Files in the order in which they were tested; the last that passes ships."
    return f"\n\n{said}\n\n{table(('file', 'size', 'difference', 'result'), rows)}" if rows else ""


def _slices(report: Json, slices: Sequence[Slice]) -> str:
    if not slices:
        return ""
    rows = [
        (
            text(each.name), numbers.count(each.n), _rate(each.candidate), _rate(each.baseline),
            "–" if each.difference is None else numbers.points(each.difference),
            "–" if each.low is None or each.high is None
            else numbers.points_span({"low": each.low, "high": each.high}),
            "too few rows" if each.too_small else numbers.p_value(each.p_holm),
        )
        for each in slices[:SLICES]
    ]  # fmt: skip
    columns = ("slice", "rows", "candidate", "baseline", "points", "interval", "p (Holm)")
    more = f"\n\nThe worst {SLICES} of {len(slices)} slices." if len(slices) > SLICES else ""
    return f"## Slices\n\n{table(columns, rows)}{more}"


def _rate(found: Json | None) -> str:
    return "–" if found is None else numbers.percent(found["value"])


def _confusions(report: Json) -> str:
    mistakes = mistakes_of((report.get("confusions") or {}).get(report["gate"]["candidate"]) or [])
    if not mistakes:
        return ""
    rows = [
        (text(each["reference"]), text(each["answer"] if each["answer"] is not None else "(invalid)"), str(each["n"]))
        for each in mistakes[:MISTAKES]
    ]
    return "## Confusions\n\n" + table(("reference", f"{code(report['gate']['candidate'])} answered", "rows"), rows, 1)


def _rows(report: Json, differing: Sequence[Disagreement], tally: dict[str, int]) -> str:
    gate = report["gate"]
    words = {kind: said.format(baseline=gate["baseline"]) for kind, said in KINDS.items() if tally[kind]}
    said = f"{numbers.count(len(differing))} of {numbers.count(report['rows']['evaluated'])} rows"
    said += (": " + "; ".join(f"{numbers.count(tally[kind])} {text(each)}" for kind, each in words.items())) * bool(
        words
    )
    head = f"## Where {code(gate['candidate'])} and {code(gate['baseline'])} differ\n\n{said}."
    if not differing:
        return head
    rows = [
        [*(text(found if found is not None else "–", CHARACTERS)
           for found in (each.prompt, each.gold, each.teacher, each.student)), text(words[each.kind])]
        for each in fitting(differing)[:DIFFERING_ROWS]
    ]  # fmt: skip
    columns = ("prompt (last message)", "gold", code(gate["baseline"]), code(gate["candidate"]), "who is right")
    more = f"\n\nThe first {len(rows)}; predictions.parquet holds all." if len(differing) > len(rows) else ""
    return f"{head}\n\n{table(columns, rows)}{more}"


def _tables(tables: Sequence[Table]) -> str:
    parts = []
    for each in tables:
        rows = [[text(found) for found in row] for row in each.rows]
        shown = table([text(name) or " " for name in each.columns], rows, len(each.columns) - 1)
        parts.append(f"### {text(each.title)}\n\n{shown}" + (f"\n\n{text(each.note)}" if each.note else ""))
    return "\n\n".join(["## Task metrics", *parts]) if parts else ""


def _data(report: Json) -> str:
    data = report["dataset"]
    rows = [(text(reason), numbers.count(n)) for reason, n in lost_on_the_way(report)]
    parts = ["## What the dataset lost on the way"]
    parts.append(table(("rejected because", "rows"), rows, 1) if rows else "No row was rejected.")
    facts = [
        (f"{title}: {text(key)}", text(value))
        for title, key_of in (("step", "steps"), ("split", "rows"), ("shared", "leakage"), ("redacted", "redacted"))
        for key, value in numbers.flattened(data.get(key_of) or {})
    ]
    return "\n\n".join([*parts, table(("dataset", "rows"), facts, 1)] if facts else parts)


def _lineage(report: Json) -> str:
    rows = [
        (
            text(each["what"]), code(each["digest"][:16]),
            ", ".join(f"{text(of['role'])} {code(of['digest'][:12])}" for of in each.get("made_from") or []) or "–",
            code((each.get("commit") or "–")[:10]),
        )
        for each in report["lineage"]
    ]  # fmt: skip
    facts = [(text(key), text(value)) for key, value in numbers.flattened(report.get("trained_on") or {})]
    made = "\n\n" + table(("training", ""), facts) if facts else ""
    return "## Lineage\n\n" + table(("what", "digest", "made from", "commit"), rows) + made


def _plan(plan: Sequence[tuple[str, str]], changes: Sequence[str]) -> str:
    if not plan:
        return ""
    changed = "\n".join(f"- **Changed after answers had been read:** {text(each)}" for each in changes)
    shown = table(("plan", ""), [(text(key), text(value)) for key, value in plan])
    return "\n\n".join(each for each in ("## What was fixed before", changed, shown) if each)


def _command(report: Json) -> str:
    return f"## How to make this report again\n\n    {visible(' '.join(str(report['command']).split()))}"
