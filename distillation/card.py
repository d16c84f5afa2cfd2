"""The data card: what went in, what came out, what was lost on the way and why, in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.dataset import SEALED
from potstill.records import Json

MOST_ROWS = 100


def data_card(name: str, facts: Json, out: Path) -> str:
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
        _teacher(out),
        "",
        "## Audit of the teacher",
        "",
        *facts["audit_card"],
        "",
        *_asked_again(facts["relabel"]),
        "## Sources that stand out",
        "",
        _sources(facts["poisoning"]),
        "",
        "## Preferences",
        "",
        _preferences(facts["preferences"])
        if facts["preferences"]
        else "Not looked for (`distill.preferences: false`).",
        "",
        "## Answers",
        "",
        _answers(out),
        "",
        "## Lengths",
        "",
        _table(["split", "part", "median", "p95", "longest", "unit"], _lengths(facts["lengths"])),
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


def _asked_again(facts: Json | None) -> list[str]:
    """What asking the teacher again brought; nothing when it was not asked."""
    if facts is None:
        return []
    told = {name: each for name, each in facts.items() if name != "run" and not isinstance(each, dict)}
    lines = ["## Teacher asked again", "", _table(["what", "figure"], list(told.items())), ""]
    for name, each in facts.items():
        if name != "run" and isinstance(each, dict):
            lines += [f"{name.replace('_', ' ')}:", "", _table(["what", "figure"], list(each.items())), ""]
    return lines


def _sources(findings: Sequence[Json]) -> str:
    if not findings:
        return "None: no user, key or file gives or corrects a label far more often than the others."
    rows = [
        [
            f"{each['source']} {each['value']}",
            f"{each['from']} -> {each['label']}" if each["from"] else each["label"],
            f"{each['count']:,} of {each['of']:,}",
            f"{each['count_elsewhere']:,} of {each['of_elsewhere']:,}",
            f"{each['p']:.1e}",
        ]
        for each in findings
    ]
    return _table(["source", "label", "here", "elsewhere", "p (Holm)"], rows)


def _preferences(facts: Json) -> str:
    left = ", ".join(f"{count:,} {reason}" for reason, count in facts["left_out"].items() if count)
    return (
        f"{facts['preferences']:,} pairs (for DPO) and {facts['opinions']:,} single opinions (for KTO) of training and "
        f"validation{'; left out: ' + left if left else ''}."
    )


def _teacher(out: Path) -> str:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    corrected = agreed = 0
    for path in ("train.parquet", "validation.parquet", SEALED):
        table = pq.read_table(out / path, columns=["answer", "teacher_answer", "corrected"])
        table = table.filter(pc.and_(table["corrected"], pc.is_valid(table["teacher_answer"])))
        corrected += len(table)
        agreed += pc.sum(pc.equal(table["answer"], table["teacher_answer"])).as_py() or 0
    if not corrected:
        return "The log holds no corrections: nothing here says how often the teacher is right."
    return (
        f"{corrected:,} rows carry a correction; the teacher had said the same in {agreed:,} of them "
        f"({agreed / corrected:.1%}). Where they differ, the correction is what is learnt."
    )


def _answers(out: Path) -> str:
    counts = {name: _counted(out / f"{name}.parquet") for name in ("train", "validation")}
    train = counts["train"]
    shown = sorted(train.items(), key=lambda each: (-each[1], each[0]))[:MOST_ROWS]
    table = _table(
        ["answer", "train", "validation"],
        [(answer, count, counts["validation"].get(answer, 0)) for answer, count in shown],
    )
    rest = len(train) - len(shown)
    return table + (f"\n\n{rest:,} rarer answers are not listed." if rest > 0 else "")


def _counted(path: Path) -> dict[str, int]:
    """How often each answer (its first 80 characters) stands in a split, read a piece at a time."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: Counter[str] = Counter()
    for batch in pq.ParquetFile(path).iter_batches(columns=["answer"]):
        for each in pc.value_counts(pc.utf8_slice_codeunits(batch.column(0), 0, 80)).to_pylist():
            found[each["values"]] += each["counts"]
    return found


def _lengths(lengths: Mapping[str, Json]) -> list[list[Any]]:
    rows = []
    for split, parts in lengths.items():
        for part, stats in parts.items():
            rows.append([split, part, stats["median"], stats["p95"], stats["longest"], stats["unit"]])
    return rows
