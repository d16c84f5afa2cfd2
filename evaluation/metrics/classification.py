"""Classification: macro F1, figures by label, calibration, and what abstaining would buy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from potstill.intervals import Resampling
from potstill.records import Json
from potstill.resampling import effective_clusters, percentiles
from potstill.tasks import Metric

from .figures import Resampled, Scored, divided, mean, ratio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .figures import Array

    Places = NDArray[np.intp]

BINS = 10
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
CURVE_POINTS = 100
FEWEST_RESAMPLES = 200
_CELLS = 40_000_000  # rows times resamples: what stays within seconds
_CELLS_AT_ONCE = 4_000_000


def classification_details(rows: Sequence[Scored], how: Resampling) -> Json:
    """Macro F1 over the labels that the reference holds, each label apart, calibration, the abstention curve.

    An invalid answer is a miss of the reference's label and a find of none.
    """
    labels = sorted({row.reference for row in rows})
    counts = Resampled(_counts(rows, labels), [row.cluster for row in rows], how)
    calibration, abstention = calibration_of(rows, how), abstention_of(rows, how)
    figures = {"macro_f1": counts.figure(lambda sums: _macro(_f1(sums, len(labels))))}
    if calibration and abstention:
        figures |= {"ece": calibration["ece"], "brier": calibration["brier"], "aurc": abstention["aurc"]}
    return {
        "figures": figures, "labels": _by_label(counts, labels), "calibration": calibration, "abstention": abstention,
    }  # fmt: skip


def _counts(rows: Sequence[Scored], labels: Sequence[str]) -> Array:
    """(rows, 3 * labels): true positives, answers, references of each label."""
    import numpy as np

    place = {label: at for at, label in enumerate(labels)}
    counts = np.zeros((len(rows), 3 * len(labels)))
    for at, row in enumerate(rows):
        counts[at, 2 * len(labels) + place[row.reference]] = 1
        if row.value in place:
            counts[at, len(labels) + place[row.value]] = 1
            counts[at, place[row.reference]] = float(row.value == row.reference)
    return counts


def _f1(sums: Array, k: int) -> Array:
    return divided(2 * sums[:, :k], sums[:, k : 2 * k] + sums[:, 2 * k :])


def _macro(each: Array) -> Array:
    """The mean over labels; those that a resample lacks wholly are left out of its mean."""
    import numpy as np

    known = ~np.isnan(each)
    return divided(np.where(known, each, 0.0).sum(axis=1), known.sum(axis=1).astype(float))


def _by_label(counts: Resampled, labels: Sequence[str]) -> list[Json]:
    k = len(labels)
    found = []
    for at, label in enumerate(labels):
        f1 = counts.figure(lambda sums, at=at: _f1(sums, k)[:, at])  # type: ignore[misc]
        found.append(
            {
                "label": label,
                "support": int(counts.total[0, 2 * k + at]),
                "precision": counts.figure(lambda sums, at=at: divided(sums[:, at], sums[:, k + at])),  # type: ignore[misc]
                "recall": counts.figure(lambda sums, at=at: divided(sums[:, at], sums[:, 2 * k + at])),  # type: ignore[misc]
                "f1": f1,
            }
        )
    return sorted(found, key=lambda each: (each["f1"]["value"], each["label"]))


def calibration_of(rows: Sequence[Scored], how: Resampling) -> Json | None:
    """Expected calibration error over ten equal bins (Guo et al. 2017, "On Calibration of Modern Neural Networks") and
    the Brier score of the answer given; None where no answer carries a confidence."""
    import numpy as np

    known = [row for row in rows if row.confidence is not None]
    if not known:
        return None
    confidence = np.array([row.confidence for row in known], dtype=float)
    right = np.array([float(row.value is not None and row.value == row.reference) for row in known])
    clusters = [row.cluster for row in known]
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.zeros((len(known), BINS + 1))
    gaps[np.arange(len(known)), bins] = confidence - right
    gaps[:, BINS] = 1.0
    sums = Resampled(gaps, clusters, how)
    return {
        "n": len(known),
        "ece": sums.figure(lambda each: divided(np.abs(each[:, :BINS]).sum(axis=1), each[:, BINS])),
        "brier": mean(list((confidence - right) ** 2), clusters, how),
        "bins": [
            {
                "low": at / BINS, "high": (at + 1) / BINS, "n": int((bins == at).sum()),
                "confidence": float(confidence[bins == at].mean()),
                "right": mean(list(right[bins == at]), [clusters[i] for i in np.flatnonzero(bins == at)], how),
            }
            for at in sorted(set(bins.tolist()))
        ],
    }  # fmt: skip


def abstention_of(rows: Sequence[Scored], how: Resampling) -> Json | None:
    """Risk (share wrong among what is answered) against coverage (share answered), the surest answered first.

    AURC is the mean risk over the ranks (Geifman & El-Yaniv 2017, "Selective Classification"); answers that are as sure
    as each other are answered together. None where no answer carries a confidence.
    """
    import numpy as np

    known = [row for row in rows if row.confidence is not None]
    if not known:
        return None
    known.sort(key=lambda row: -(row.confidence or 0.0))
    confidence = np.array([row.confidence for row in known], dtype=float)
    wrong = np.array([float(row.value is None or row.value != row.reference) for row in known])
    clusters = [row.cluster for row in known]
    ends = np.searchsorted(-confidence, -confidence, side="right") - 1  # the last row that is as sure as this one
    risk = wrong.cumsum()[ends] / (ends + 1)
    low, high = _aurc_interval(wrong, ends, clusters, how)
    steps = np.unique(ends)
    curve = steps[np.unique(np.linspace(0, len(steps) - 1, CURVE_POINTS).astype(int))]
    return {
        "aurc": {
            "value": float(risk.mean()), "low": low, "high": high, "n": len(known), "clusters": len(set(clusters)),
            "method": "bootstrap", "unit": "share",
        },
        "points": [_point(share, confidence, wrong, ends, clusters, how) for share in COVERAGES],
        "curve": [[float((at + 1) / len(known)), float(wrong[: at + 1].mean())] for at in curve],
    }  # fmt: skip


def _point(
    share: float, confidence: Array, wrong: Array, ends: Places, clusters: Sequence[str], how: Resampling
) -> Json:
    """Risk where at least this share is answered, at the threshold that does so."""
    n = len(confidence)
    at = int(ends[max(0, min(n - 1, round(share * n) - 1))])
    rows = [{"wrong": float(wrong[i]) * (i <= at), "answered": float(i <= at)} for i in range(n)]
    risk = ratio(Metric("risk", {"wrong": 1.0}, {"answered": 1.0}), rows, clusters, how)
    return {"coverage": (at + 1) / n, "threshold": float(confidence[at]), "risk": risk}


def _aurc_interval(wrong: Array, ends: Places, clusters: Sequence[str], how: Resampling) -> tuple[float, float]:
    """The percentile interval of AURC; conversations resampled as weights of their rows."""
    import numpy as np

    _, codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    count = int(codes.max()) + 1
    generator = np.random.default_rng(how.seed)
    step = max(1, _CELLS_AT_ONCE // len(wrong))
    found = []
    resamples = min(how.resamples, max(FEWEST_RESAMPLES, _CELLS // len(wrong)))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=size)[:, codes].astype(float)
        risk = divided((weights * wrong).cumsum(axis=1)[:, ends], weights.cumsum(axis=1)[:, ends])
        found.append((np.nan_to_num(risk) * weights).sum(axis=1) / weights.sum(axis=1))
    return percentiles(np.concatenate(found), how.alpha, effective_clusters(np.bincount(codes).astype(float)))
