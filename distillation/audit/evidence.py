"""Rows as the arrays that the model is fitted to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .agreement import Agreement
from .findings import fold_of
from .prompts import Version, version_key
from .rows import AuditRow
from .settings import Audit
from .suspects import Evidence, Floats, Judged, softmax

FREQUENT = 3  # times that an invalid answer occurs to be told from other invalid ones
VERSION_ROWS = 5  # rows of a prompt version whose list of labels is believed
PEOPLE_RIGHT = 0.97  # what a correction of a near-identical request counts for


def sample(rows: Sequence[AuditRow], settings: Audit) -> list[int]:
    """Places of the rows to examine: all, or `max_rows` of them, corrected ones first, others by chance."""
    if len(rows) <= settings.max_rows:
        return list(range(len(rows)))
    drawn = {at: fold_of(settings.seed, each.id, 2**32) for at, each in enumerate(rows)}
    ranked = sorted(drawn, key=lambda at: (rows[at].correction is None, drawn[at], at))
    return sorted(ranked[: settings.max_rows])


def evidence_of(
    rows: Sequence[AuditRow],
    labels: Sequence[str],
    versions: Sequence[Version],
    folds: Sequence[int],
    corrections: Agreement,
) -> Evidence:
    """The arrays of these rows. Invalid answers that recur are answers of their own, the others one together."""
    number = {label: at for at, label in enumerate(labels)}
    invalid = Counter(each.said.strip() for each in rows if each.teacher is None)
    recurring = sorted(said for said, count in invalid.items() if count >= FREQUENT)
    odd = {said: len(labels) + 1 + at for at, said in enumerate(recurring)}
    lists = [each for each in versions if each.offered is not None and len(each.rows) >= VERSION_ROWS]
    place = {each.key: at + 1 for at, each in enumerate(lists)}
    offered = np.ones((len(lists) + 1, len(labels)), dtype=np.bool_)
    for at, each in enumerate(lists):
        offered[at + 1] = [label in (each.offered or ()) for label in labels]
    said = [odd.get(each.said.strip(), len(labels)) if each.teacher is None else number[each.teacher] for each in rows]
    return Evidence(
        texts=[each.asked for each in rows],
        said=np.array(said, dtype=np.int64),
        corrected=np.array([-1 if e.correction is None else number[e.correction] for e in rows], dtype=np.int64),
        fold=np.array(folds, dtype=np.int64),
        version=np.array([place.get(version_key(each.system), 0) for each in rows], dtype=np.int64),
        offered=offered,
        labels=len(labels),
        answers=len(labels) + 1 + len(recurring),
        wrong_rate=corrections.wrong_rate if corrections.usable else None,
    )


def pooled(judged: Judged, rows: Sequence[AuditRow], places: Sequence[int], labels: Sequence[str]) -> Floats:
    """(K,) what near-identical requests say together: their mean text score, and every answer and correction."""
    scores: Floats = np.log(judged.text[list(places)] + 1e-12).mean(axis=0)
    for at in places:
        correction = rows[at].correction
        if correction is None:
            scores = scores + np.log(judged.likelihood[at] + 1e-12)
        else:
            people = np.full(len(labels), (1 - PEOPLE_RIGHT) / (len(labels) - 1))
            people[labels.index(correction)] = PEOPLE_RIGHT
            scores = scores + np.log(people)
    found: Floats = softmax(scores[None, :])[0]
    return found
