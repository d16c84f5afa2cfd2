"""The five answers that a reviewer looks for first, each in a line and a few words more.

Is it better, by how much, where does it fail, what did it cost, what was it trained on. Every figure is one of
report.json; nothing is computed here but sums and ratios of what stands there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.records import Json

from .confusion import mistakes_of
from .numbers import count, milliseconds, percent, points, points_span, seconds, size, span, usd
from .sections import Slice

Tone = str  # good, bad, unclear, or empty where there is nothing to judge


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with its answer; `anchor` is the section that holds the rest."""

    question: str
    answer: str
    anchor: str
    lines: list[str] = field(default_factory=list)
    tone: Tone = ""


def five_answers(report: Json, tally: Mapping[str, int], slices: Sequence[Slice]) -> list[Answer]:
    """In the order in which a reviewer asks."""
    return [
        is_it_better(report),
        by_how_much(report),
        where_does_it_fail(report, tally, slices),
        what_did_it_cost(report),
        what_was_it_trained_on(report),
    ]


def main_comparison(report: Json) -> Json | None:
    """The comparison that the gate rests on."""
    pair = (report["gate"]["candidate"], report["gate"]["baseline"])
    return next((each for each in report["comparisons"] if (each["candidate"], each["baseline"]) == pair), None)


def is_it_better(report: Json) -> Answer:
    main, gate = main_comparison(report), report["gate"]
    if main is None:
        return Answer("Is it better?", "Nothing could be judged", "candidates", list(gate["reasons"])[:1], "unclear")
    other = f"the {gate['baseline']}"
    margin = f"{main['margin'] * 100:g} points"
    answer, tone = {
        "superior": (f"Yes: better than {other}", "good"),
        "non_inferior": (f"As good as {other}: not worse by more than {margin}", "good"),
        "inferior": (f"No: worse than {other} by more than {margin}", "bad"),
        "undecided": ("Undecided: these rows show neither", "unclear"),
    }[main["verdict"]]
    if main["verdict"] == "undecided" and main["high"] < 0:
        answer, tone = f"No: worse than {other}; by more than {margin} or not is undecided", "bad"
    elif main["verdict"] == "non_inferior" and main["high"] < 0:
        answer, tone = f"No: slightly worse than {other}, by less than the {margin} allowed", "unclear"
    basis = "quality on gold" if main["basis"] == "quality" else "agreement with the teacher only: there is no gold"
    lines = [f"Judged by {main['metric']}, {basis}; required: {gate['require'].replace('_', '-')}."]
    if main.get("rows_needed"):
        lines.append(f"About {count(main['rows_needed'])} rows would decide; there are {count(main['n'])}.")
    return Answer("Is it better?", answer, "differences", lines, tone)


def by_how_much(report: Json) -> Answer:
    main, gate = main_comparison(report), report["gate"]
    if main is None:
        return Answer("By how much?", "Not known", "differences", ["No row could be judged for both."])
    lines = []
    pair = [report["candidates"].get(name, {}).get(main["basis"]) for name in (gate["candidate"], gate["baseline"])]
    if pair[0] and pair[1]:
        lines.append(
            f"{percent(pair[0]['value'])} {span(pair[0])} against {percent(pair[1]['value'])} {span(pair[1])} "
            f"in {main['metric']}."
        )
    lines.append(
        f"{count(main['n'])} rows of {count(main['clusters'])} conversations: {count(main['wins'])} won, "
        f"{count(main['losses'])} lost, the others alike."
    )
    tone = "good" if main["low"] > 0 else "bad" if main["high"] < 0 else "unclear"
    return Answer(
        "By how much?", f"{points(main['difference'])} points {points_span(main)}", "differences", lines, tone
    )


def where_does_it_fail(report: Json, tally: Mapping[str, int], slices: Sequence[Slice]) -> Answer:
    """Slices that lose after Holm, then the commonest mistakes, then rows that the baseline alone gets right."""
    gate = report["gate"]
    lines = []
    alpha = report["settings"].get("alpha", 0.05)
    losing = sorted(
        (each for each in slices if each.difference is not None and each.significant(alpha) and each.difference < 0),
        key=lambda each: each.difference or 0.0,
    )
    lines += [f"Slice {each.name}: {points(each.difference or 0)} points, {count(each.n)} rows." for each in losing[:2]]
    mistakes = mistakes_of(report.get("confusions", {}).get(gate["candidate"]) or [])
    lines += [
        f"{each['reference']} answered as {each['answer'] or 'an invalid answer'}: {each['n']} times."
        for each in mistakes[: 3 - len(lines)]
    ]
    entry = report["candidates"].get(gate["candidate"], {})
    if len(lines) < 3 and entry.get("valid_rate", 1.0) < 1.0:
        lines.append(f"{percent(1 - entry['valid_rate'])} of its answers are invalid.")
    anchor = "slices" if losing else "confusions" if mistakes else "rows"
    lost, won = tally.get("teacher", 0), tally.get("student", 0)
    if lost or won:
        answer = f"{count(lost)} rows that the {gate['baseline']} gets right ({count(won)} the other way round)"
        return Answer("Where does it fail?", answer, anchor, lines)
    if losing:
        return Answer("Where does it fail?", f"{len(losing)} slices lose", anchor, lines)
    total = sum(tally.values())
    answer = f"{count(total)} rows answered unlike the {gate['baseline']}" if total else "On no row alone"
    return Answer("Where does it fail?", answer, anchor, lines or ["No gold says which of the two is right."])


def what_did_it_cost(report: Json) -> Answer:
    gate, entries = report["gate"], report["candidates"]
    ours, theirs = entries.get(gate["candidate"], {}), entries.get(gate["baseline"], {})
    prices = [(each.get("cost") or {}).get("usd_per_thousand") for each in (ours, theirs)]
    if prices[0] is not None:
        answer = f"{usd(prices[0])} a thousand requests"
        if prices[1]:
            answer += f", against {usd(prices[1])}"
    else:
        answer = f"{milliseconds((ours.get('latency_ms') or {}).get('p50'))} a request; no price known"
    lines = []
    delays = [(each.get("latency_ms") or {}).get("p50") for each in (ours, theirs)]
    if delays[0] is not None and (prices[0] is not None or delays[1] is not None):
        against = f", against {milliseconds(delays[1])}" if delays[1] is not None else ""
        lines.append(f"Median latency {milliseconds(delays[0])}{against}.")
    if ours.get("size_bytes"):
        speed = f", {count(ours['tokens_per_second'])} tokens/s" if ours.get("tokens_per_second") else ""
        lines.append(f"{size(ours['size_bytes'])} on disk{speed}.")
    training = (report.get("trained_on") or {}).get("training") or {}
    if training.get("train_seconds"):
        lines.append(f"Training took {seconds(training['train_seconds'])}.")
    if prices[0] is None and (reason := (ours.get("cost") or {}).get("reason")):
        lines.append(f"{str(reason)[0].upper()}{str(reason)[1:]}.")
    return Answer("What did it cost?", answer, "frontier", lines)


def what_was_it_trained_on(report: Json) -> Answer:
    data, origin = report.get("dataset") or {}, report.get("trained_on") or {}
    rows: Mapping[str, Any] = data.get("rows") or {}
    trained = (origin.get("rows") or {}).get("train", rows.get("train"))
    answer = f"{count(trained)} rows of logged traffic" if trained is not None else "The manifest does not say"
    lines = []
    if origin.get("base"):
        lines.append(f"Base: {short_spec(str(origin['base']))}.")
    lost, corrected = sum((data.get("rejections") or {}).values()), (data.get("steps") or {}).get("corrected")
    parts = [f"{count(lost)} rows rejected with a reason"]
    parts += [f"{count(corrected)} corrected by feedback"] if corrected else []
    lines.append("; ".join(parts) + ".")
    leaks = data.get("leakage") or {}
    if leaks:
        total = sum(each for each in leaks.values() if isinstance(each, int))
        lines.append(
            "Nothing is shared between training and the held-out rows." if not total
            else f"Leakage: {count(total)} shared between splits."
        )  # fmt: skip
    return Answer("What was it trained on?", answer, "data", lines, "bad" if leaks and any(leaks.values()) else "")


def short_spec(spec: str) -> str:
    """The last part of a base's address, which names it."""
    return spec.rstrip("/").rpartition("/")[2] or spec
