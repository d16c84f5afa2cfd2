"""The gate: whether the file that would ship may, and the reasons in full sentences. And the headline of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from potstill.errors import PotstillError
from potstill.records import Json

from .candidates import ARTIFACT

Require = Literal["non_inferior", "superior"]
PREFERRED = "artifact:gguf-q8_0"


@dataclass(frozen=True, slots=True)
class GateRule:
    """Who must be how good against whom; the optional bounds are shares (0.005 is half a point)."""

    candidate: str
    baseline: str
    require: Require
    max_quantisation_loss: float | None = None
    min_valid_rate: float | None = None


def judged(asked: str | None, names: Sequence[str]) -> str:
    """The candidate that the gate judges: the one asked for, or the exported file."""
    files = [name for name in names if name.startswith(ARTIFACT)]
    chosen = asked or (PREFERRED if PREFERRED in files else files[0] if files else names[-1])
    if chosen not in names:
        raise PotstillError(
            f"evaluate.gate.candidate: {chosen} is not evaluated; the candidates are {', '.join(names)}; "
            "name one of them or add it to evaluate.candidates"
        )
    return chosen


def judge(rule: GateRule, comparisons: Sequence[Json], candidates: Mapping[str, Json], source: str | None) -> Json:
    """`passed` and `reasons` (never empty: a passed gate says on what grounds)."""
    against: list[str] = []
    grounds: list[str] = []
    if source == "corrections":
        grounds.append("no gold: judged on agreement with the teacher (corrections alone are no fair sample)")
    elif source is None:
        grounds.append("no gold: judged on agreement with the teacher")
    main = find(comparisons, rule.candidate, rule.baseline)
    if main is None:
        against.append(f"{rule.candidate} and {rule.baseline} share no row that could be judged")
    else:
        enough = ("superior",) if rule.require == "superior" else ("superior", "non_inferior")
        words = f"{rule.candidate} is {main['verdict']} to {rule.baseline} in {main['metric']}: {main['reason']}"
        (grounds if main["verdict"] in enough else against).append(
            words if main["verdict"] in enough else f"{words}; required is {rule.require}"
        )
    entry = candidates[rule.candidate]
    if entry["errors"]:
        grounds.append(f"{entry['errors']} of {entry['rows']} requests to {rule.candidate} failed and count as wrong")
    if rule.min_valid_rate is not None and entry["valid_rate"] < rule.min_valid_rate:
        against.append(
            f"{rule.candidate} gives a valid answer to {entry['valid_rate']:.2%} of the rows; "
            f"required are {rule.min_valid_rate:.2%}"
        )
    against += _quantisation(rule, comparisons)
    return {
        "passed": not against, "reasons": against + grounds, "candidate": rule.candidate, "baseline": rule.baseline,
        "require": rule.require, "basis": "quality" if source == "gold" else "agreement",
    }  # fmt: skip


def _quantisation(rule: GateRule, comparisons: Sequence[Json]) -> list[str]:
    if rule.max_quantisation_loss is None or not rule.candidate.startswith(ARTIFACT):
        return []
    loss = find(comparisons, rule.candidate, "adapter")
    if loss is None:
        return [f"the loss of {rule.candidate} against the adapter is not known: add adapter to evaluate.candidates"]
    if -loss["low"] <= rule.max_quantisation_loss:
        return []
    return [
        f"{rule.candidate} may have lost up to {points(-loss['low'])} against the adapter (upper end of the interval "
        f"on {loss['n']} rows); allowed are {points(rule.max_quantisation_loss)}"
    ]


def headline(gate: Json, comparisons: Sequence[Json], candidates: Mapping[str, Json], margin: float) -> Json:
    """The result in plain words, a loss first: `tone`, `title`, `sentences`."""
    student, teacher = gate["candidate"], gate["baseline"]
    main = find(comparisons, student, teacher)
    if main is None:
        return {"tone": "unclear", "title": "Nothing could be judged.", "sentences": list(gate["reasons"])}
    what = main["metric"] if main["basis"] == "quality" else f"agreement with the teacher ({main['metric']})"
    value = points(main["difference"], sign=True)
    low, high = (f"{main[key] * 100:+.1f}" for key in ("low", "high"))
    title, tone = _title(student, teacher, main, margin)
    sentences = [
        f"Difference in {what} on {main['n']:,} rows of {main['clusters']:,} conversations: {value} [{low}, {high}]."
    ]
    figures = [(name, candidates[name][main["basis"]]) for name in (student, teacher) if name in candidates]
    sentences += [
        f"{name}: {figure['value']:.1%} [{figure['low']:.1%}, {figure['high']:.1%}]."
        for name, figure in figures
        if figure is not None
    ]
    if main["verdict"] == "undecided":
        sentences.append(f"Why undecided: {main['reason']}.")
    return {"tone": tone, "title": title, "sentences": sentences}


def _title(student: str, teacher: str, main: Json, margin: float) -> tuple[str, str]:
    """One sentence and its tone. An interval wholly below zero is a loss, whatever the margin makes of it."""
    worse = f"The student loses: {student} is worse than the {teacher}"
    if main["verdict"] == "inferior":
        return f"{worse} by more than the margin of {points(margin)}.", "bad"
    if main["verdict"] == "undecided" and main["high"] < 0:
        return f"{worse}; whether by more than the margin of {points(margin)} is undecided.", "bad"
    if main["verdict"] == "undecided":
        return f"Undecided: the rows do not show whether {student} is as good as the {teacher}.", "unclear"
    if main["high"] < 0:
        return f"{worse}, though by less than the {points(margin)} that the recipe allows.", "unclear"
    if main["verdict"] == "superior":
        return f"The student wins: {student} is better than the {teacher}.", "good"
    return f"The student is as good as the {teacher}: {student} is not worse by more than {points(margin)}.", "good"


def find(comparisons: Sequence[Json], candidate: str, baseline: str) -> dict[str, Any] | None:
    return next((each for each in comparisons if each["candidate"] == candidate and each["baseline"] == baseline), None)


def points(share: float, sign: bool = False) -> str:
    """A share as percentage points."""
    return f"{share * 100:{'+' if sign else ''}.1f} points"
