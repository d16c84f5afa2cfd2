"""Tool calls: whether to call, which function, which arguments, and whether a whole conversation goes right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.intervals import Resampling
from potstill.records import Json
from potstill.tasks import Metric
from potstill.tasks.json_forms import form, loose

from .figures import Scored, ratio

METRICS = (
    Metric("exact", {"exact": 1.0}, {"rows": 1.0}),
    Metric("call_or_not", {"decision": 1.0}, {"rows": 1.0}),
    Metric("calls_when_it_should", {"called": 1.0}, {"should_call": 1.0}),
    Metric("keeps_quiet_when_it_should", {"quiet": 1.0}, {"should_not": 1.0}),
    Metric("function", {"names": 1.0}, {"gold_calls": 1.0}),
    Metric("arguments", {"calls": 1.0}, {"gold_calls": 1.0}),
    Metric("argument_precision", {"pairs": 1.0}, {"found_pairs": 1.0}),
    Metric("argument_recall", {"pairs": 1.0}, {"gold_pairs": 1.0}),
    Metric("argument_f1", {"pairs": 2.0}, {"found_pairs": 1.0, "gold_pairs": 1.0}),
    Metric("wrong_by_type_alone", {"by_type": 1.0}, {"gold_calls": 1.0}),
)


def tool_calls_details(rows: Sequence[Scored], how: Resampling) -> Json:
    """The parts of a call apart, whole conversations, and every function.

    Parallel calls are multisets: each gold call is matched with at most one call of the answer. Arguments are compared
    as (function, name, value); `wrong_by_type_alone` counts gold calls whose match differs in JSON types only.
    """
    parts = [_parts(row) for row in rows]
    clusters = [row.cluster for row in rows]
    figures = {each.name: ratio(each, parts, clusters, how) for each in METRICS}
    figures["whole_conversation"] = _conversations(clusters, [each["exact"] for each in parts], how)
    return {"figures": figures, "functions": _by_function(rows, how)}


def _parts(row: Scored) -> dict[str, float]:
    found, gold = _calls(row.value), _calls(row.reference)
    answered = row.value is not None
    calls, gold_calls = (Counter(_form(call) for call in each) for each in (found, gold))
    typeless, gold_typeless = (Counter(_loose(call) for call in each) for each in (found, gold))
    pairs, gold_pairs = (Counter(_pairs(each)) for each in (found, gold))
    same = (calls & gold_calls).total()
    decision = answered and bool(found) == bool(gold)
    return {
        "rows": 1.0,
        "exact": float(decision and calls == gold_calls),
        "decision": float(decision),
        "called": float(bool(found and gold)),
        "should_call": float(bool(gold)),
        "quiet": float(answered and not found and not gold),
        "should_not": float(not gold),
        "names": float((_names(found) & _names(gold)).total()),
        "calls": float(same),
        "gold_calls": float(len(gold)),
        "pairs": float((pairs & gold_pairs).total()),
        "found_pairs": float(pairs.total()),
        "gold_pairs": float(gold_pairs.total()),
        "by_type": float(max(0, (typeless & gold_typeless).total() - same)),
    }


def _calls(value: Any | None) -> list[Json]:
    return value["calls"] if value else []


def _names(calls: Sequence[Json]) -> Counter[str]:
    return Counter(call["name"] for call in calls)


def _form(call: Json) -> str:
    return form([call["name"], call["arguments"]])


def _loose(call: Json) -> str:
    return loose([call["name"], call["arguments"]])


def _pairs(calls: Sequence[Json]) -> list[tuple[str, str, str]]:
    return [(call["name"], name, form(value)) for call in calls for name, value in call["arguments"].items()]


def _conversations(clusters: Sequence[str], exact: Sequence[float], how: Resampling) -> Json | None:
    """The share of conversations of which every judged turn is exact; Wilson's interval, for they are the units."""
    whole: dict[str, float] = {}
    for cluster, right in zip(clusters, exact, strict=True):
        whole[cluster] = min(whole.get(cluster, 1.0), right)
    rows = [{"right": each} for each in whole.values()]
    return ratio(Metric("whole_conversation", {"right": 1.0}), rows, list(whole), how)


def _by_function(rows: Sequence[Scored], how: Resampling) -> list[Json]:
    """Every function that gold calls or an answer called, the worst first."""
    terms: defaultdict[str, list[Mapping[str, float]]] = defaultdict(list)
    clusters: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        found, gold = _calls(row.value), _calls(row.reference)
        for name in _names(found).keys() | _names(gold).keys():
            mine, wanted = ([call for call in each if call["name"] == name] for each in (found, gold))
            same = Counter(map(_form, mine)) & Counter(map(_form, wanted))
            terms[name].append(
                {
                    "gold": float(len(wanted)), "called": float(len(mine)),
                    "name_right": float(min(len(mine), len(wanted))), "arguments_right": float(same.total()),
                }
            )  # fmt: skip
            clusters[name].append(row.cluster)
    found_all = [_function(name, terms[name], clusters[name], how) for name in sorted(terms)]
    return sorted(found_all, key=lambda each: (each["arguments"] or {"value": 2.0})["value"])


def _function(name: str, terms: Sequence[Mapping[str, float]], clusters: Sequence[str], how: Resampling) -> Json:
    counts = {key: int(sum(each[key] for each in terms)) for key in terms[0]}
    return {
        "function": name,
        **counts,
        "name": ratio(Metric("name", {"name_right": 1.0}, {"gold": 1.0}), terms, clusters, how),
        "arguments": ratio(Metric("arguments", {"arguments_right": 1.0}, {"gold": 1.0}), terms, clusters, how),
    }
