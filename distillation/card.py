"""The data card: what went in, what came out, what was lost on the way and why, in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.records import Example, Json

MOST_ROWS = 100


def data_card(name: str, facts: Json, splits: Mapping[Any, Sequence[Example]], lengths: Mapping[str, Json]) -> str:
    """The card of one dataset; every table comes from the facts that the manifest carries."""
    parts = [
        f"# Dataset of {name}",
        "",
        f"{facts['rows']['train']:,} training, {facts['rows']['validation']:,} validation and "
        f"{facts['rows']['test']:,} sealed test rows, out of {facts['read']['lines']:,} logged lines.",
        "",
        "## Counts at every step",
        "",
        _table(["step", "rows"], list(facts["steps"].items())),
        "",
        "## Rows left out, by reason",
        "",
        _table(["reason", "rows"], list(facts["rejections"].items())) if facts["rejections"] else "None.",
        "",
        "## Redacted before anything was written",
        "",
        _table(["kind", "findings"], list(facts["redacted"].items())) if facts["redacted"] else "Nothing was found.",
        "",
        "## Prompt",
        "",
        _prompt(facts["prompt_rule"]),
        "",
        "## Teacher and corrections",
        "",
        _teacher(splits),
        "",
        "## Answers",
        "",
        _answers(splits),
        "",
        "## Lengths",
        "",
        _table(["split", "part", "median", "p95", "longest", "unit"], _lengths(lengths)),
        "",
        "## Leakage",
        "",
        "Shared between splits (any number above zero fails the run):",
        "",
        _table(["shared", "count"], list(facts["leakage"].items())),
        "",
    ]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = (f"{each:,}" if isinstance(each, int) else str(each).replace("|", "\\|") for each in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _prompt(rule: Json) -> str:
    if not rule["drops"] and not rule["strips"]:
        return "Kept as logged."
    lines = ["Internalised: the student is trained, evaluated and served without these standing instructions.", ""]
    for drop in rule["drops"]:
        lines.append(f"- message left out ({drop['role']}, {len(drop['text']):,} characters): {drop['text'][:160]!r}…")
    for strip in rule["strips"]:
        lines.append(
            f"- frame removed ({strip['role']}): {strip['prefix'][:80]!r}… before, {strip['suffix'][:80]!r}… after"
        )
    return "\n".join(lines)


def _teacher(splits: Mapping[Any, Sequence[Example]]) -> str:
    rows = [each for split in splits.values() for each in split]
    corrected = [each for each in rows if each.corrected and each.teacher_answer is not None]
    agreed = sum(1 for each in corrected if each.answer == each.teacher_answer)
    if not corrected:
        return "The log holds no corrections: nothing here says how often the teacher is right."
    return (
        f"{len(corrected):,} rows carry a correction; the teacher had said the same in {agreed:,} of them "
        f"({agreed / len(corrected):.1%}). Where they differ, the correction is what is learnt."
    )


def _answers(splits: Mapping[Any, Sequence[Example]]) -> str:
    counts = {name: Counter(each.answer for each in rows) for name, rows in splits.items() if name != "test"}
    train = counts.get("train", Counter())
    shown = train.most_common(MOST_ROWS)
    table = _table(
        ["answer", "train", "validation"],
        [(answer[:80], count, counts.get("validation", Counter())[answer]) for answer, count in shown],
    )
    rest = len(train) - len(shown)
    return table + (f"\n\n{rest:,} rarer answers are not listed." if rest > 0 else "")


def _lengths(lengths: Mapping[str, Json]) -> list[list[Any]]:
    rows = []
    for split, parts in lengths.items():
        for part, stats in parts.items():
            rows.append([split, part, stats["median"], stats["p95"], stats["longest"], stats["unit"]])
    return rows
