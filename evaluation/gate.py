"""The gate: whether the file that would ship may, and the reasons in full sentences. And the headline of the report.

`choose: smallest` tests the exported files from the largest to the smallest, each at full level, and stops at the
first that does not pass: a fixed sequence of hypotheses (Maurer, Hothorn & Lehmacher 1995; Westfall & Krishen 2001,
Journal of Statistical Planning and Inference 99:25). The chance of passing any file that is worse by the margin stays
that of one test, because the first such file in the order must pass before any other can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    max_slice_loss: float | None = None
    alpha: float = 0.05  # of `max_slice_loss`
    choose: Literal["smallest"] | None = None
    order: tuple[str, ...] = ()  # of `choose`: the exported files, the largest first


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


def largest_first(sizes: Mapping[str, int | None]) -> tuple[str, ...]:
    """The exported files in the order of the fixed sequence; raises PotstillError where a size is not known."""
    files = {name: size for name, size in sizes.items() if name.startswith(ARTIFACT)}
    unknown = [name for name, size in files.items() if size is None]
    if unknown or not files:
        found = f"the size is not known of {', '.join(unknown)}" if unknown else "no exported file is evaluated"
        raise PotstillError(f"evaluate.gate.choose: {found}; keep `artifacts` among evaluate.candidates")
    return tuple(sorted(files, key=lambda name: (-(files[name] or 0), name)))


def judge_all(
    rule: GateRule, comparisons: Sequence[Json], candidates: Mapping[str, Json], source: str | None,
    slices_of: Callable[[str], Sequence[Json]] = lambda candidate: (), changes: Sequence[Json] = (),
) -> tuple[Json, Sequence[Json]]:  # fmt: skip
    """The gate's result with the slices of the candidate that it is about.

    `passed`, `reasons`, `shipped` (None when refused), and `sequence` where files were tested in order.
    """
    steps: list[tuple[Json, Sequence[Json]]] = []
    for name in rule.order or (rule.candidate,):
        slices = slices_of(name)
        step = judge(replace(rule, candidate=name), comparisons, candidates, source, slices, changes)
        steps.append((step, slices))
        if not step["passed"]:
            break
    passing = [each for each in steps if each[0]["passed"]]
    gate, slices = passing[-1] if passing else steps[0]
    gate["shipped"] = gate["candidate"] if gate["passed"] else None
    if rule.order:
        gate["choose"] = rule.choose
        gate["sequence"] = _sequence(rule, [step for step, _ in steps], comparisons, candidates)
        if gate["passed"]:
            gate["reasons"].append(_chosen_words(gate["candidate"], rule, [step for step, _ in steps]))
    return gate, slices


def _sequence(
    rule: GateRule, steps: Sequence[Json], comparisons: Sequence[Json], candidates: Mapping[str, Json]
) -> list[Json]:
    """Every file in order. `superior` stands only while every larger file is superior too: its own fixed sequence."""
    entries: list[Json] = []
    superior = True
    for at, name in enumerate(rule.order):
        main = find(comparisons, name, rule.baseline) if at < len(steps) else None
        superior = superior and main is not None and main["verdict"] == "superior"
        entries.append(
            {
                "candidate": name, "size_bytes": candidates[name].get("size_bytes"), "tested": at < len(steps),
                "passed": at < len(steps) and steps[at]["passed"], "superior": superior,
                **{key: main and main[key] for key in ("verdict", "difference", "low", "high", "n")},
            }
        )  # fmt: skip
    return entries


def _chosen_words(chosen: str, rule: GateRule, steps: Sequence[Json]) -> str:
    failed = [step["candidate"] for step in steps if not step["passed"]]
    left = len(rule.order) - len(steps)
    end = f"{failed[0]} did not pass" if failed else "it is the smallest"
    untested = f", {left} smaller {'one was' if left == 1 else 'ones were'} not tested" if left else ""
    return f"{chosen} was chosen: of the files in order of size it is the last that passed, {end}{untested}"


def judge(
    rule: GateRule, comparisons: Sequence[Json], candidates: Mapping[str, Json], source: str | None,
    slices: Sequence[Json] = (), changes: Sequence[Json] = (),
) -> Json:  # fmt: skip
    """`passed` and `reasons` (never empty: a passed gate says on what grounds)."""
    against = [
        f"{each['words']}; a rule that is eased after the answers are known is no rule" for each in changes
        if not each["allowed"]
    ]  # fmt: skip
    grounds = [each["words"] for each in changes if each["allowed"]]
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
    lost, kept = _slices(rule, slices)
    against, grounds = against + lost, grounds + kept
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


def _slices(rule: GateRule, slices: Sequence[Json]) -> tuple[list[str], list[str]]:
    """Parts of the rows that are shown to lose more than allowed, and those that lose at all."""
    tested = sum(1 for each in slices if each["p"] is not None)
    over = [
        f"{rule.candidate} loses more than {points(rule.max_slice_loss)} where {each['by']} is {each['value']}: "
        f"{points(each['difference'], sign=True)} on {each['n']} rows (p {each['p_bound_holm']:.2g} after Holm over "
        f"{tested} slices)"
        for each in slices
        if rule.max_slice_loss is not None and each["p_bound_holm"] is not None and each["p_bound_holm"] < rule.alpha
    ]
    worse = [f"{each['by']} {each['value']}" for each in slices if each["flag"] == "worse"]
    shown = ", ".join(worse[:5]) + (f" and {len(worse) - 5} more" if len(worse) > 5 else "")
    return over, [f"worse than {rule.baseline} on {len(worse)} of {tested} slices: {shown}"] if worse else []


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
