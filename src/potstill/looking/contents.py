"""What the page of a dataset shows, out of its folder. The sealed split is never opened: its count is the manifest's.

Tables are read in batches of the columns and rows needed; what is held is bounded by the rows shown, besides two
integers a kept row for its cluster.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.dataset import OPINIONS, PREFERENCES, OpenSplit
from potstill.errors import ManifestMismatch
from potstill.manifest import Manifest
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.rejections import kind_of

from .choose import batches, even, height, picked, shares
from .rows import KEPT_COLUMNS, Page, judged_row, kept_row, origin_of, rejected_row, representative
from .summary import summary

OPEN: tuple[OpenSplit, ...] = ("train", "validation")
REJECTIONS, AUDIT = "rejections.parquet", "audit.parquet"
REJECTED_COLUMNS = ("id", "source", "line", "step", "reason", "row")
MOST_CHARACTERS = 24_000_000  # of the rows of a tab together, besides standing texts: what a phone still opens
MOST_FOLDED = 50  # duplicates listed of one cluster
MOST_ANSWERS = 200  # distinct answers that are counted one by one on the page; more are free text
SHORT = 120  # characters of an answer that is counted


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of all rows of training and validation: figures, and the number of rows of each cluster."""

    total: int
    origins: Counter[str]
    answers: list[Json]
    weighted: int
    clusters: dict[int, int]


@dataclass(frozen=True, slots=True)
class Rejected:
    """What is known of all rows left out: how many for each reason, and the duplicates of each kept row."""

    total: int
    groups: Counter[str]
    folded: dict[str, list[Json]]
    folds: Counter[str]


def contents(folder: Path, manifest: Manifest, most: int) -> Json:
    """Everything the page holds, at most `most` rows a tab; raises ManifestMismatch when a split is missing."""
    for split in OPEN:
        if not (folder / f"{split}.parquet").is_file():
            raise ManifestMismatch(f"{folder / split}.parquet is missing; restore the folder or distil again")
    facts = manifest.facts
    page = Page(PromptRule.from_json(facts.get("prompt_rule") or {}), max(4_000, MOST_CHARACTERS // most))
    suspects, suspected = _suspects(folder / AUDIT, most)
    kept = _survey_kept(folder)
    shown, wanted = _clusters(folder, kept, most)
    rejected = _survey_rejected(folder / REJECTIONS, wanted)
    known = {each["id"] for each in suspects if each["id"]}
    rows, sample = _kept_rows(page, folder, most, known | wanted)
    left_out, left_sample = _rejected_rows(page, folder, most, rejected, known)
    _tell_audit(folder / AUDIT, rows, left_out)
    clusters = _with_members(shown, rejected)
    pairs, opinions = (_judged(page, folder / name, most) for name in (PREFERENCES, OPINIONS))
    return {
        "overview": summary(folder, manifest, kept.origins, kept.answers, kept.weighted, rejected.groups),
        "rows": rows,
        "left_out": left_out,
        "kept": {"total": kept.total, "ids": sample},
        "rejected": {"total": rejected.total, "groups": dict(rejected.groups.most_common()), "numbers": left_sample},
        "clusters": {"total": len(kept.clusters), "list": clusters},
        "suspects": {"total": suspected, "list": suspects},
        "preferences": pairs,
        "opinions": opinions,
        "texts": page.texts.all(),
        "most": most,
    }


def _suspects(path: Path, most: int) -> tuple[list[Json], int]:
    """The worst findings of the audit, worst first, and how many there are."""

    def each() -> Iterator[Json]:
        for _, batch in batches(path, ("id", "finding", "teacher", "suggested", "score", "action", "evidence")):
            yield from batch.to_pylist()

    return heapq.nlargest(most, each(), key=lambda row: (not row["id"], row["score"] or 0.0)), height(path)


def _survey_kept(folder: Path) -> Kept:
    """Figures over all rows of the open splits."""
    import numpy as np

    origins, learnt, said = Counter[str](), Counter[str](), Counter[str]()
    weighted, total, parts = 0, 0, []
    counting = True
    for split in OPEN:
        columns = ("answer", "teacher_answer", "corrected", "weight", "count", "cluster")
        for _, batch in batches(folder / f"{split}.parquet", columns):
            rows = batch.to_pylist()
            total += len(rows)
            origins.update(map(origin_of, rows))
            weighted += sum(row["weight"] != 1 for row in rows)
            parts.append(np.array([(row["cluster"], row["count"]) for row in rows], np.int64).reshape(-1, 2))
            if counting:
                learnt.update(row["answer"] if len(row["answer"]) <= SHORT else "" for row in rows)
                said.update(row["teacher_answer"] for row in rows)
                counting = len(learnt) <= MOST_ANSWERS and not learnt[""]
    found = learnt.most_common() if counting else []
    answers = [{"answer": name, "learnt": n, "said": said[name]} for name, n in found]
    pairs = np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)
    names, inverse = np.unique(pairs[:, 0], return_inverse=True)
    sizes = np.bincount(inverse, weights=pairs[:, 1], minlength=len(names)).astype(np.int64)
    several = np.flatnonzero((sizes > 1) & (names >= 0))
    clusters = dict(zip(names[several].tolist(), sizes[several].tolist(), strict=True))
    return Kept(total, origins, answers, weighted, clusters)


def _clusters(folder: Path, kept: Kept, most: int) -> tuple[list[Json], set[str]]:
    """The largest clusters with the ids of their kept rows, no more than `most` rows together; and those ids."""
    chosen: dict[int, Json] = {}
    left = most
    for cluster, size in sorted(kept.clusters.items(), key=lambda each: (-each[1], each[0])):
        if (left := left - min(size, MOST_FOLDED)) < 0:
            break
        chosen[cluster] = {"cluster": cluster, "size": size, "kept": []}
    ids: set[str] = set()
    for split in OPEN:
        for _, batch in batches(folder / f"{split}.parquet", ("id", "cluster")):
            for id, cluster in zip(batch.column("id").to_pylist(), batch.column("cluster").to_pylist(), strict=True):
                if cluster in chosen and len(chosen[cluster]["kept"]) < MOST_FOLDED:
                    chosen[cluster]["kept"].append(id)
                    ids.add(id)
    return list(chosen.values()), ids


def _survey_rejected(path: Path, wanted: Collection[str]) -> Rejected:
    """Reasons of all rows left out, and which of them are folded into the kept rows with these ids."""
    groups, folds = Counter[str](), Counter[str]()
    folded: dict[str, list[Json]] = defaultdict(list)
    for start, batch in batches(path, ("id", "step", "reason")):
        for at, row in enumerate(batch.to_pylist(), start):
            groups[kind_of(row["step"], row["reason"])] += 1
            into = representative(row["reason"])
            if into is not None and into in wanted:
                folds[into] += 1
                if len(folded[into]) < MOST_FOLDED:
                    folded[into].append({"number": at, "id": row["id"], "reason": row["reason"]})
    return Rejected(groups.total(), groups, folded, folds)


def _with_members(clusters: Sequence[Json], rejected: Rejected) -> list[Json]:
    return [
        each
        | {
            "folded": [member for id in each["kept"] for member in rejected.folded.get(id, ())][:MOST_FOLDED],
            "folds": sum(rejected.folds[id] for id in each["kept"]),
        }
        for each in clusters
    ]


def _kept_rows(page: Page, folder: Path, most: int, ids: Collection[str]) -> tuple[dict[str, Json], list[str]]:
    """Rows by id: an even choice of the open splits (whose ids come too), and the rows with these ids."""
    sizes = [height(folder / f"{split}.parquet") for split in OPEN]
    numbers = even(sum(sizes), most)
    rows: dict[str, Json] = {}
    sample = []
    start = 0
    for split, size in zip(OPEN, sizes, strict=True):
        here = [at - start for at in numbers if start <= at < start + size]
        even_ones = set(here)
        for at, row in picked(folder / f"{split}.parquet", KEPT_COLUMNS, here, ids):
            rows[row["id"]] = kept_row(page, row, split)
            if at in even_ones:
                sample.append(row["id"])
        start += size
    return rows, sample


def _rejected_rows(
    page: Page, folder: Path, most: int, rejected: Rejected, suspects: Collection[str]
) -> tuple[dict[str, Json], list[int]]:
    """Rows left out by number: every reason's fair share (whose numbers come too), suspects, members of clusters."""
    path = folder / REJECTIONS
    given = shares(rejected.groups, most)
    turns = {kind: iter(even(rejected.groups[kind], n)) for kind, n in given.items()}
    following = {kind: next(each, -1) for kind, each in turns.items()}
    seen, sample = Counter[str](), []
    for start, batch in batches(path, ("step", "reason")):
        for at, row in enumerate(batch.to_pylist(), start):
            kind = kind_of(row["step"], row["reason"])
            if seen[kind] == following[kind]:
                sample.append(at)
                following[kind] = next(turns[kind], -1)
            seen[kind] += 1
    members = {each["number"] for members in rejected.folded.values() for each in members}
    found = list(picked(path, REJECTED_COLUMNS, sorted(members.union(sample)), suspects))
    doubtful = {row["id"] for _, row in found if row["step"] == "read" and row["id"]}
    known = _known(folder, doubtful)
    return {str(at): rejected_row(page, row, row["id"] in known) for at, row in found}, sample


def _known(folder: Path, ids: Collection[str]) -> set[str]:
    """Which of these ids stand in an open split, or were left out in another step than reading."""
    found: set[str] = set()
    if not ids:
        return found
    for split in OPEN:
        found.update(row["id"] for _, row in picked(folder / f"{split}.parquet", ("id",), (), ids))
    left_out = picked(folder / REJECTIONS, ("id", "step"), (), ids)
    return found | {row["id"] for _, row in left_out if row["step"] not in ("read", "split")}


def _tell_audit(path: Path, rows: dict[str, Json], left_out: dict[str, Json]) -> None:
    """Add to every row shown what the audit found of it."""
    by_id: dict[str, list[Json]] = defaultdict(list)
    for row in (*rows.values(), *(each for each in left_out.values() if each["step"] not in ("read", "split"))):
        if row.get("id"):
            by_id[row["id"]].append(row)
    for _, finding in picked(path, ("id", "finding", "suggested", "score", "action", "evidence"), (), by_id):
        for row in by_id[finding.pop("id")]:
            row.setdefault("audit", []).append(finding)


def _judged(page: Page, path: Path, most: int) -> Json:
    total = height(path)
    found: Any = []
    if total:
        import pyarrow.parquet as pq

        names = pq.read_schema(path).names
        found = [judged_row(page, row) for _, row in picked(path, names, even(total, most))]
    return {"total": total, "list": found}
