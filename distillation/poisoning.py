"""Against a few who would teach the student something: caps per user and key, and sources whose labels stand out.

Who can write into a log, or correct its answers, can poison what is learnt from it; a few hundred rows are enough
whatever the size of the log. Caps bound what one user or key contributes. `label_shifts` names sources (a user, a key,
a file, a day) that give a label, or turn one label into another, far more often than the rest do.

Inputs are columns of one length, a value a row; None or "" stands for unknown, and nothing unknown is capped or judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from potstill.recipe import Section
from potstill.records import Json

from .sample import by_hash

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Whole = npt.NDArray[np.int64]

Column = Sequence[str | None]
Count = Annotated[int, Field(ge=1)] | None
Share = Annotated[float, Field(gt=0, le=1)] | None


class Poisoning(Section):
    """How much one user or key may contribute, and when a source counts as strange.

    Caps are off by default: a log from one internal service has one key, and rightly so. Shares are of all rows (of all
    corrections for corrections). A source is flagged when the excess has a p-value under `alpha` (after Holm's
    correction for all comparisons made), at least `least_rows` rows, and happens `least_ratio` times as often as
    elsewhere: in a large log every small difference is significant. Flags are reported; `on_flag: drop` leaves the
    flagged rows out.
    """

    max_rows_per_user: Count = None
    max_share_per_user: Share = None
    max_rows_per_key: Count = None
    max_share_per_key: Share = None
    max_corrections_per_user: Count = None
    max_corrections_per_key: Count = None
    max_correction_share_per_user: Share = None
    max_correction_share_per_key: Share = None
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.001
    least_rows: Annotated[int, Field(ge=2)] = 10
    least_ratio: Annotated[float, Field(ge=1)] = 3.0
    on_flag: Literal["report", "drop"] = "report"

    def capped(self) -> bool:
        """Whether any cap is set."""
        return any(value is not None for name, value in self if name.startswith("max_"))


# Caps


def cap_reasons(
    ids: Sequence[str],
    users: Column,
    keys: Column,
    corrected: Sequence[bool],
    settings: Poisoning,
    seed: int = 0,
) -> list[str | None]:
    """Why a row is over a cap, None where it stays.

    Which rows of a user stay is decided by the hash of their ids: neither early nor late rows are favoured, and the
    order of the log does not matter. Caps apply one after the other (rows per user, rows per key, corrections per user,
    per key), each to what the ones before have left; shares are of what the log held at first.
    """
    import numpy as np

    reasons: list[str | None] = [None] * len(ids)
    everything = np.ones(len(ids), bool)
    opinions = np.asarray(corrected, dtype=bool)
    caps = [
        (users, everything, settings.max_rows_per_user, settings.max_share_per_user, "rows of one user"),
        (keys, everything, settings.max_rows_per_key, settings.max_share_per_key, "rows of one key"),
        (users, opinions, settings.max_corrections_per_user, settings.max_correction_share_per_user,
         "corrections of one user"),
        (keys, opinions, settings.max_corrections_per_key, settings.max_correction_share_per_key,
         "corrections of one key"),
    ]  # fmt: skip
    if all(count is None and share is None for _, _, count, share, _ in caps):
        return reasons
    order = np.array(by_hash(ids, range(len(ids)), seed), dtype=np.intp)
    for owners, affected, count, share, what in caps:
        most = _most(count, share, int(affected.sum()))
        if most is None:
            continue
        left = affected & np.array([each is None for each in reasons], dtype=bool)
        for row in _beyond(order[left[order]], owners, most).tolist():
            reasons[row] = f"over the cap: more than {most:,} {what}"
    return reasons


def _most(count: int | None, share: float | None, rows: int) -> int | None:
    bounds = [] if count is None else [count]
    bounds += [] if share is None else [max(1, int(share * rows))]
    return min(bounds, default=None)


def _beyond(order: npt.NDArray[np.intp], owners: Column, most: int) -> npt.NDArray[np.intp]:
    """The rows of each owner after its first `most` in this order."""
    import numpy as np

    codes, _ = _codes([owners[row] for row in order.tolist()])
    by_owner = np.argsort(codes, kind="stable")
    ranked = codes[by_owner]
    place = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
    return order[by_owner[(place >= most) & (ranked >= 0)]]


# Sources that stand out


@dataclass(frozen=True, slots=True)
class Shifts:
    """`findings`, one row a flagged source and label, strongest evidence first; `rows` the row numbers of each.

    A finding says: source kind and value; `what` ("answers" or "corrections"), `label` (for corrections `from` too),
    `count` of `of` rows there, `count_elsewhere` of `of_elsewhere`, `ratio`, `p` (one-sided, exact, Holm-corrected),
    and `comparisons`, how many were made.
    """

    findings: list[Json]
    rows: list[list[int]]

    def reasons(self, count: int) -> list[str | None]:
        """Why a row is flagged, for `count` rows: the strongest finding that holds it; None where there is none."""
        reasons: list[str | None] = [None] * count
        for finding, rows in zip(self.findings, self.rows, strict=True):
            said = finding["label"] if finding["from"] is None else f"{finding['from']} -> {finding['label']}"
            for row in rows:
                reasons[row] = (
                    reasons[row] or f"label shift: {finding['source']} {finding['value']}, {finding['what']} {said}"
                )
        return reasons


def label_shifts(sources: Mapping[str, Column], answers: Column, corrections: Column, settings: Poisoning) -> Shifts:
    """Sources that give a label, or correct one label into another, far more often than all others of their kind.

    `sources` maps a kind ("user", "key", "file", "day") to each row's source; `answers` are the labels that the large
    model gave, `corrections` those that a person gave instead (None: no correction; equal labels: a confirmation).
    Answers: a label's share of a source's rows against its share elsewhere. Corrections: of the rows answered with one
    label, the share turned into another one, against the other sources *that correct at all* (a reviewer corrects, a
    customer does not: that is no shift). That share is taken within the answered label, so a source that only has
    other topics is not flagged for it.

    Each comparison is Fisher's exact test, one-sided (too many). All sources with `least_rows` rows and all labels
    count as comparisons, whatever was seen, and Holm's step-down keeps the chance of even one false flag at `alpha`,
    as far as rows are independent. They are not quite (a user returns to one topic): read an answer's shift by user as
    a question, not as a proof. For label sets; free text has no labels to shift.
    """
    import numpy as np

    said, names = _codes(answers)
    turned, _ = _codes(corrections, names)
    pairs = np.where((said >= 0) & (turned >= 0) & (said != turned), said * len(names) + turned, -1)
    cells: list[_Cell] = []
    comparisons = 0
    for kind, column in sources.items():
        codes, values = _codes(column)
        corrects = np.bincount(codes[(turned >= 0) & (codes >= 0)], minlength=len(values)) > 0
        for what, base, outcome, able in (
            ("answers", np.where(said >= 0, 0, -1), said, np.ones(len(values), bool)),
            ("corrections", said, pairs, corrects),
        ):
            found, made = _cells(kind, what, values, codes, base, outcome, able, len(names), settings.least_rows)
            cells, comparisons = cells + found, comparisons + made
    return _flagged(cells, comparisons, names, settings)


@dataclass(frozen=True, slots=True)
class _Cell:
    """One comparison: `count` of `of` rows of a source against `count_elsewhere` of `of_elsewhere`."""

    kind: str
    what: str
    value: str
    outcome: int
    count: int
    of: int
    count_elsewhere: int
    of_elsewhere: int
    rows: npt.NDArray[np.intp]


def _cells(
    kind: str, what: str, values: list[str], codes: Whole, base: Whole, outcome: Whole, able: npt.NDArray[np.bool_],
    labels: int, least_rows: int,
) -> tuple[list[_Cell], int]:  # fmt: skip
    """The comparisons with at least `least_rows` such outcomes, and how many could have been made.

    `base` says within which group of rows a share is taken (-1: none), `outcome` what is counted there.
    """
    import numpy as np

    rows = np.flatnonzero((codes >= 0) & (base >= 0))
    rows = rows[able[codes[rows]]]
    if not len(rows) or labels < 2:
        return [], 0
    bases = int(base.max()) + 1
    group = codes[rows] * bases + base[rows]
    groups, of = np.unique(group, return_counts=True)
    made = int((of >= least_rows).sum()) * (labels if what == "answers" else labels - 1)
    of_base = np.bincount(base[rows], minlength=bases)
    counted = rows[outcome[rows] >= 0]
    outcomes = int(outcome.max(initial=0)) + 1
    of_outcome = np.bincount(outcome[counted], minlength=outcomes)
    cell = codes[counted] * outcomes + outcome[counted]
    order = np.argsort(cell, kind="stable")
    each, start, count = np.unique(cell[order], return_index=True, return_counts=True)
    found = []
    for at in np.flatnonzero(count >= least_rows).tolist():
        members = counted[order[start[at] : start[at] + count[at]]]
        source, result, within = int(codes[members[0]]), int(each[at] % outcomes), int(base[members[0]])
        total = int(of[np.searchsorted(groups, source * bases + within)])
        here, all_base, all_outcome = int(count[at]), int(of_base[within]), int(of_outcome[result])
        rest = (all_outcome - here, all_base - total)
        found.append(_Cell(kind, what, values[source], result, here, total, *rest, members))
    return found, made


def _flagged(cells: Sequence[_Cell], comparisons: int, names: Sequence[str], settings: Poisoning) -> Shifts:
    """Those with too many, after Holm (1979) over all comparisons made."""
    import numpy as np
    from scipy.stats import hypergeom

    able = [each for each in cells if each.of_elsewhere]  # alone of its kind: there is nothing to compare it with
    count, of, elsewhere, of_elsewhere = (
        np.array([getattr(each, name) for each in able], dtype=np.int64)
        for name in ("count", "of", "count_elsewhere", "of_elsewhere")
    )
    raw = hypergeom.sf(count - 1, of + of_elsewhere, count + elsewhere, of) if able else np.empty(0)
    order = np.argsort(raw, kind="stable")
    corrected = np.minimum(1, np.maximum.accumulate(raw[order] * (comparisons - np.arange(len(order)))))
    findings: list[Json] = []
    rows: list[list[int]] = []
    for p, at in zip(corrected.tolist(), order.tolist(), strict=True):
        cell = able[at]
        share, other = cell.count / cell.of, cell.count_elsewhere / cell.of_elsewhere
        if p >= settings.alpha or share < settings.least_ratio * other:
            continue
        label, before = cell.outcome % len(names), cell.outcome // len(names)
        findings.append(
            {
                "source": cell.kind,
                "value": cell.value,
                "what": cell.what,
                "from": names[before] if cell.what == "corrections" else None,
                "label": names[label],
                "count": cell.count,
                "of": cell.of,
                "count_elsewhere": cell.count_elsewhere,
                "of_elsewhere": cell.of_elsewhere,
                "ratio": share / other if other else None,
                "p": p,
                "comparisons": comparisons,
            }
        )
        rows.append(cell.rows.tolist())
    return Shifts(findings, rows)


def _codes(column: Column, names: list[str] | None = None) -> tuple[Whole, list[str]]:
    """Each value's number, -1 for unknown ones, and the values by number. `names` is added to when given."""
    import numpy as np

    names = [] if names is None else names
    number = {name: at for at, name in enumerate(names)}
    codes = np.empty(len(column), np.int64)
    for row, value in enumerate(column):
        codes[row] = -1 if value is None or value == "" else number.setdefault(value, len(number))
    names[:] = number
    return codes, names
