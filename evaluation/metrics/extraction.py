"""Extraction: whole objects, slots taken together and field by field, and whether answers fit the schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from potstill.intervals import Resampling
from potstill.records import Json
from potstill.tasks.json_forms import form

from .figures import Resampled, Scored, divided, mean

if TYPE_CHECKING:
    from .figures import Array

RIGHT, MISSING, SPURIOUS, WRONG = range(4)


def extraction_details(rows: Sequence[Scored], how: Resampling) -> Json:
    """Exact, micro and macro slot figures, validity; then every field with its mistakes by kind.

    A field that both name with different values is wrong: found in vain and missed at once, as `Extraction.score` has
    it. Macro F1 is the mean over the fields that gold or the answers hold.
    """
    clusters = [row.cluster for row in rows]
    fields = sorted({key for row in rows for key in (*row.reference, *(row.value or {}))})
    k = len(fields)
    counts = Resampled(_counts(rows, fields), clusters, how)
    exact = [row.value is not None and form(row.value) == form(row.reference) for row in rows]
    not_json = [row.reason is not None and row.reason.startswith("not JSON") for row in rows]
    return {
        "figures": {
            "exact": mean(exact, clusters, how),
            "slot_precision": counts.figure(lambda sums: _precision(_summed(sums, k))[:, 0]),
            "slot_recall": counts.figure(lambda sums: _recall(_summed(sums, k))[:, 0]),
            "slot_f1_micro": counts.figure(lambda sums: _f1(_summed(sums, k))[:, 0]),
            "slot_f1_macro": counts.figure(lambda sums: _mean_known(_f1(_parts(sums, k)))),
            "valid_json": mean([not each for each in not_json], clusters, how),
            "schema_valid": mean([row.value is not None for row in rows], clusters, how),
        },
        "fields": _by_field(counts, fields),
    }


def _counts(rows: Sequence[Scored], fields: Sequence[str]) -> Array:
    """(rows, 4 * fields): right, missing, spurious, wrong of each field."""
    import numpy as np

    counts = np.zeros((len(rows), 4, len(fields)))
    for at, row in enumerate(rows):
        value = row.value or {}
        for place, name in enumerate(fields):
            if name in value and name in row.reference:
                same = form(value[name]) == form(row.reference[name])
                counts[at, RIGHT if same else WRONG, place] = 1
            elif name in row.reference:
                counts[at, MISSING, place] = 1
            elif name in value:
                counts[at, SPURIOUS, place] = 1
    return counts.reshape(len(rows), -1)


def _parts(sums: Array, k: int) -> Array:
    """(resamples, 4, fields)."""
    parts: Array = sums.reshape(len(sums), 4, k)
    return parts


def _summed(sums: Array, k: int) -> Array:
    """(resamples, 4, 1): all fields together."""
    together: Array = _parts(sums, k).sum(axis=2, keepdims=True)
    return together


def _precision(parts: Array) -> Array:
    return divided(parts[:, RIGHT], parts[:, RIGHT] + parts[:, SPURIOUS] + parts[:, WRONG])


def _recall(parts: Array) -> Array:
    return divided(parts[:, RIGHT], parts[:, RIGHT] + parts[:, MISSING] + parts[:, WRONG])


def _f1(parts: Array) -> Array:
    twice = 2 * parts[:, RIGHT]
    return divided(twice, twice + parts[:, MISSING] + parts[:, SPURIOUS] + 2 * parts[:, WRONG])


def _mean_known(each: Array) -> Array:
    import numpy as np

    known = ~np.isnan(each)
    return divided(np.where(known, each, 0.0).sum(axis=1), known.sum(axis=1).astype(float))


def _by_field(counts: Resampled, fields: Sequence[str]) -> list[Json]:
    k = len(fields)
    total = _parts(counts.total, k)[0]
    found = []
    for at, name in enumerate(fields):
        right, missing, spurious, wrong = (int(each) for each in total[:, at])
        found.append(
            {
                "field": name, "gold": right + missing + wrong, "right": right, "missing": missing,
                "spurious": spurious, "wrong": wrong,
                "precision": counts.figure(lambda sums, at=at: _precision(_parts(sums, k))[:, at]),  # type: ignore[misc]
                "recall": counts.figure(lambda sums, at=at: _recall(_parts(sums, k))[:, at]),  # type: ignore[misc]
                "f1": counts.figure(lambda sums, at=at: _f1(_parts(sums, k))[:, at]),  # type: ignore[misc]
            }
        )  # fmt: skip
    return sorted(found, key=lambda each: (each["f1"]["value"], each["field"]))
