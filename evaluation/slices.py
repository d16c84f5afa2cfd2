"""Where the candidate loses: the paired difference on parts of the held-out rows, corrected for looking at many.

Parts are by label (the reference's), by prompt version, by third of prompt length, and by the metadata keys that the
recipe names. A part is flagged when the candidate is worse than the baseline there at level alpha after Holm's
correction over all tested parts (Holm 1979, Scandinavian Journal of Statistics 6:65). Parts overlap and may depend on
each other in any way; Holm allows that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.intervals import estimate, p_worse, paired_difference
from potstill.records import Example, Json, Prediction
from potstill.tasks import Task

from .report import Predictions, Rules
from .rows import HeldOut

# Fewer rows show nothing, and every one tested costs the others some power.
MIN_ROWS = 30
# Values of one key that are listed by themselves; the rest are one part.
MOST_VALUES = 100
THIRDS = ("short", "middle", "long")
_VARIES = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows, by their places, with what they have in common."""

    by: str
    value: str
    places: tuple[int, ...]


def slices_of(
    candidate: str, baseline: str, predictions: Predictions, rows: HeldOut, task: Task, rules: Rules,
    keys: Sequence[str] = (), bound: float | None = None,
) -> list[Json]:  # fmt: skip
    """One entry a part: rates, difference, `p` and `p_holm` of being worse, `flag`; too small ones are not tested.

    With `bound`, also `p_bound` and `p_bound_holm` of being worse by more than that.
    """
    first, second = predictions[candidate], predictions[baseline]
    judged = [
        at
        for at, (a, b) in enumerate(zip(first, second, strict=True))
        if getattr(a, rules.basis) and getattr(b, rules.basis)
    ]
    found = [_entry(each, first, second, task, rules, bound) for each in parts_of(rows, judged, task, rules, keys)]
    tested = [each for each in found if each["p"] is not None]
    for name in ("p", "p_bound"):
        corrected = holm([each[name] for each in tested if each[name] is not None], rules.how.alpha)
        for each, p in zip(tested, corrected, strict=False):
            each[f"{name}_holm"] = p
    for each in tested:
        each["flag"] = "worse" if each["p_holm"] < rules.how.alpha else "not shown to be worse"
    return found


def holm(ps: Sequence[float], alpha: float = 0.05) -> list[float]:
    """P values that may be read together, by statsmodels."""
    from statsmodels.stats.multitest import multipletests

    return [float(each) for each in multipletests(list(ps), alpha, method="holm")[1]] if ps else []


def parts_of(rows: HeldOut, judged: Sequence[int], task: Task, rules: Rules, keys: Sequence[str]) -> list[Part]:
    """All parts of the judged rows, each key's by size. A key with one value alone divides nothing and is left out."""
    references = rows.gold if rules.basis == "quality" else rows.teacher
    divisions: dict[str, Callable[[Example], str | None]] = {}
    if task.kind == "classification":
        divisions["label"] = lambda each: task.canonical(references[each.id]) if each.id in references else None
    divisions["prompt version"] = prompt_version
    divisions["length"] = _thirds([rows.examples[at] for at in judged])
    for key in keys:
        divisions[key] = lambda each, key=key: _read(each.metadata, key)  # type: ignore[misc]
    parts: list[Part] = []
    for by, value_of in divisions.items():
        values = {at: value_of(rows.examples[at]) for at in judged}
        counts = Counter(each for each in values.values() if each is not None)
        listed = [value for value, _ in sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:MOST_VALUES]]
        named = {at: each if each in listed else "(others)" for at, each in values.items() if each is not None}
        names = [*listed, "(others)"] if "(others)" in named.values() else listed
        if len(names) > 1:
            parts += [Part(by, name, tuple(at for at, each in named.items() if each == name)) for name in names]
    return parts


def prompt_version(example: Example) -> str:
    """Eight hex digits of the standing instructions, digits in them aside: the name that the data card gives them."""
    texts = [each.get("content") for each in example.full_messages if each.get("role") in ("system", "developer")]
    system = "\n".join(each if isinstance(each, str) else json.dumps(each, sort_keys=True) for each in texts)
    return hashlib.sha256(_VARIES.sub("0", system).encode()).hexdigest()[:8]


def _length(example: Example) -> int:
    """Characters of the prompt that the student sees."""
    return sum(len(str(each.get("content") or "")) for each in example.messages)


def _thirds(examples: Sequence[Example]) -> Callable[[Example], str | None]:
    lengths = sorted(_length(each) for each in examples)
    edges = [lengths[len(lengths) * at // 3] for at in (1, 2)] if lengths else [0, 0]
    return lambda each: THIRDS[sum(_length(each) >= edge for edge in edges)]


def _read(metadata: Json, key: str) -> str | None:
    """A metadata value by its dotted key, as text; None where the row has none."""
    found: Any = metadata
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if found is None:
        return None
    return found if isinstance(found, str) else json.dumps(found, sort_keys=True, ensure_ascii=False)


def _entry(
    part: Part, first: Sequence[Prediction], second: Sequence[Prediction], task: Task, rules: Rules, bound: float | None
) -> Json:
    metric, how = task.metrics[0], rules.how
    ours = [getattr(first[at], rules.basis) for at in part.places]
    theirs = [getattr(second[at], rules.basis) for at in part.places]
    clusters = [first[at].conversation for at in part.places]
    small = len(part.places) < MIN_ROWS

    def p(worse_by: float | None) -> float | None:
        return None if small or worse_by is None else p_worse(metric, ours, theirs, clusters, worse_by, how.alpha)

    difference = None if small else paired_difference(metric, ours, theirs, clusters, how)
    rates = [estimate(metric, side, clusters, how) for side in (ours, theirs)]
    return {
        "by": part.by, "value": part.value, "n": len(part.places), "clusters": len(set(clusters)),
        "metric": metric.name, "basis": rules.basis,
        **{
            name: rate and {"value": rate.value, "low": rate.low, "high": rate.high}
            for name, rate in zip(("candidate", "baseline"), rates, strict=True)
        },
        "difference": difference and difference.value, "low": difference and difference.low,
        "high": difference and difference.high,
        "p": p(0.0), "p_holm": None, "p_bound": p(bound), "p_bound_holm": None,
        "too_small": small, "flag": "too small" if small else "undefined",
    }  # fmt: skip
