"""What may be concluded of bases that answered the same rows: each one's figure, its distance to the best, in words.

The best is found on the rows that it is judged by, so all pairs are in play: differences are stated at a level that
holds for all of them together (Bonferroni). What the rows cannot tell apart is called undecided, not equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.intervals import Difference, Estimate, Resampling, decide, estimate, paired_difference
from potstill.records import Json
from potstill.tasks.base import Metric

Standing = Literal["best", "worse", "undecided"]


@dataclass(frozen=True, slots=True)
class Answers:
    """What one base answered, row by row in the slice's order: components of the score, validity, conversation."""

    ids: list[str]
    scores: list[dict[str, float]]
    valid: list[bool]
    conversations: list[str]

    @classmethod
    def read(cls, path: Path) -> Answers:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return cls(*([row[key] for row in rows] for key in ("id", "scores", "valid", "conversation")))


@dataclass(frozen=True, slots=True)
class Judgement:
    """One base's quality and how it stands to the best, the difference being (this one minus the best)."""

    quality: Estimate
    valid_rate: float
    standing: Standing
    difference: Difference | None
    words: str

    def to_json(self) -> Json:
        q, d = self.quality, self.difference
        return {
            "quality": {"metric": q.metric, "value": q.value, "low": q.low, "high": q.high, "n": q.n},
            "valid_rate": self.valid_rate,
            "standing": self.standing,
            "difference": {"value": d.value, "low": d.low, "high": d.high} if d else None,
            "words": self.words,
        }


def judge(metric: Metric, answers: Mapping[str, Answers], *, alpha: float = 0.05) -> dict[str, Judgement]:
    """A judgement of every base that answered; a base whose figure is undefined on these rows is left out."""
    figures: dict[str, Estimate] = {}
    for name, each in answers.items():
        found = estimate(metric, each.scores, each.conversations, Resampling(alpha))
        if found is not None:
            figures[name] = found
    if not figures:
        return {}
    best = max(figures, key=lambda name: figures[name].value)
    pairs = len(figures) * (len(figures) - 1) // 2
    how = Resampling(alpha / max(1, pairs))
    return {
        name: _judged(name == best, figure, answers[name], answers[best], metric, how)
        for name, figure in figures.items()
    }


def _judged(
    is_best: bool, figure: Estimate, mine: Answers, best: Answers, metric: Metric, how: Resampling
) -> Judgement:
    rate = sum(mine.valid) / len(mine.valid)
    if is_best:
        return Judgement(figure, rate, "best", None, "the best figure on these rows")
    if mine.ids != best.ids:
        raise ValueError("the bases answered different rows, expected the same in the same order")
    difference = paired_difference(metric, mine.scores, best.scores, mine.conversations, how)
    if difference is None:
        return Judgement(figure, rate, "undecided", None, "undecided: no difference is defined on these rows")
    return Judgement(figure, rate, *stand(difference, how.alpha))


def stand(difference: Difference, alpha: float) -> tuple[Standing, Difference, str]:
    """How a base stands whose figure minus the best one's is `difference`, and that in words."""
    decision = decide(difference, 0.0, alpha)
    found = points(difference)
    if decision.verdict == "inferior":
        return "worse", difference, f"worse than the best: {found}"
    if decision.reason.startswith("too few"):
        return "undecided", difference, f"undecided: {found}; {decision.reason}"
    if decision.rows_needed is None:
        return "undecided", difference, f"undecided: {found}; they did equally well"
    return "undecided", difference, f"undecided: {found}; about {rounded(decision.rows_needed):,} rows would decide"


def rounded(count: int) -> int:
    """Two digits that matter: how many rows would decide is a guess."""
    return int(float(f"{count:.1e}"))


def points(difference: Difference | Mapping[str, Any]) -> str:
    """A difference of shares in points of a hundred, with its interval."""
    value, low, high = (
        (difference.value, difference.low, difference.high)
        if isinstance(difference, Difference)
        else (difference["value"], difference["low"], difference["high"])
    )
    return f"{100 * value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def conclusion(rows: Sequence[Json]) -> list[str]:
    """The comparison in sentences, the decided apart from the undecided. `rows` as in comparison.json."""
    done = [row for row in rows if row["status"] == "done"]
    failed = [row for row in rows if row["status"] == "failed"]
    best = next((row for row in done if row["standing"] == "best"), None)
    sentences = []
    if best is None:
        sentences.append("No base has a result: nothing can be concluded.")
    else:
        q = best["quality"]
        figure = f"{q['metric']} {q['value']:.3f} [{q['low']:.3f}, {q['high']:.3f}] on {q['n']:,} rows"
        sentences.append(f"{best['name']} has the best figure: {figure}.")
        sentences += _others(best, [row for row in done if row is not best])
    if failed:
        sentences.append(f"No result: {', '.join(row['name'] for row in failed)} (see the reasons).")
    return sentences


def _others(best: Json, others: Sequence[Json]) -> list[str]:
    if not others:
        return ["No other base has a result, so it is compared with nothing."]
    worse = [row["name"] for row in others if row["standing"] == "worse"]
    open_ = [row for row in others if row["standing"] == "undecided"]
    sentences = [f"Worse than it (95 %, all pairs together): {', '.join(worse)}."] if worse else []
    if not open_:
        return sentences
    names = ", ".join(f"{row['name']} ({row['words'].removeprefix('undecided: ')})" for row in open_)
    sentences.append(f"Undecided against it: {names}. These rows cannot tell them apart, which is not to say equal.")
    cheapest = min([best, *open_], key=lambda row: float(row["serving"]["seconds_per_thousand"]))
    sentences.append(f"Of those not shown to be worse, {cheapest['name']} costs least at serving.")
    return sentences
