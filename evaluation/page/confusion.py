"""Confusions: the commonest mistakes, and a matrix of the labels that go wrong most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from potstill.records import Json

WORST_LABELS = 12
MISTAKES = 15
INVALID = "(invalid)"
OTHERS = "(others)"


def mistakes_of(confusions: Sequence[Json]) -> list[Json]:
    """Pairs of a reference and another answer, commonest first."""
    return [each for each in confusions if each["reference"] != each["answer"]]


def confusion(confusions: Sequence[Json]) -> Json:
    """`mistakes` (the commonest), their total, and the `matrix` of the labels that go wrong most."""
    mistakes = mistakes_of(confusions)
    return {
        "mistakes": mistakes[:MISTAKES],
        "total": sum(each["n"] for each in mistakes),
        "most": max((each["n"] for each in mistakes), default=1),
        "matrix": matrix(confusions),
    }


def matrix(confusions: Sequence[Json]) -> Json:
    """`labels` with a count for each (reference, answer); answers that are no worst label are summed in a column."""
    wrong: Counter[str] = Counter()
    for each in confusions:
        wrong[each["reference"]] += each["n"] if each["reference"] != each["answer"] else 0
        if each["answer"] is not None and each["answer"] != each["reference"]:
            wrong[each["answer"]] += each["n"]
    every = sorted({each["reference"] for each in confusions} | {each["answer"] for each in confusions} - {None})
    labels = every
    if len(every) > WORST_LABELS:
        labels = sorted(sorted(every, key=lambda label: (-wrong[label], label))[:WORST_LABELS])
    counts: Counter[tuple[str, str]] = Counter()
    for each in confusions:
        if each["reference"] in labels:
            counts[each["reference"], _column(each["answer"], labels)] += each["n"]
    extra = [name for name in (OTHERS, INVALID) if any(column == name for _, column in counts)]
    top = max(counts.values(), default=1)
    return {
        "labels": labels, "extra": extra, "all": len(every),
        "rows": [
            {
                "reference": label, "n": sum(counts[label, column] for column in [*labels, *extra]),
                "cells": [
                    {"n": counts[label, column], "right": label == column, "answer": column,
                     "weight": round(counts[label, column] / top, 3)}
                    for column in [*labels, *extra]
                ],
            }
            for label in labels
        ],
    }  # fmt: skip


def _column(answer: str | None, labels: Sequence[str]) -> str:
    if answer is None:
        return INVALID
    return answer if answer in labels else OTHERS
