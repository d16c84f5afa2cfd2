"""Clusters of duplicates: equal prompts by hash, near-duplicates by MinHash bands with every pair checked exactly."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fingerprints import BATCH, shingle_hashes
from .runtime import Runtime
from .semantic import Semantic, semantic_pairs
from .spool import cells

NEIGHBOURS = 8  # with how many earlier members of a bucket each one is compared; a chain joins the rest
PAIRS_A_TASK = 4096


@dataclass(frozen=True, slots=True)
class Places:
    """Where rows stand in the spool: `starts[at]` is the number of the first row of block `blocks[at]`."""

    scratch: Path
    blocks: tuple[int, ...]
    starts: tuple[int, ...]

    def of(self, rows: Any) -> list[tuple[int, int]]:
        """(block, offset) of row numbers."""
        import numpy as np

        starts = np.asarray(self.starts)
        at = np.searchsorted(starts, rows, side="right") - 1
        return list(zip(np.asarray(self.blocks)[at].tolist(), (rows - starts[at]).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """Texts by row number, and the Jaccard similarity from which two are near-duplicates."""

    places: Places
    threshold: float


def link(keys: Any) -> tuple[Any, Any]:
    """Edges from each row to the first row with the same key; key 0 links nothing. Two int64 arrays."""
    import numpy as np

    rows = np.flatnonzero(keys)
    _, first, inverse = np.unique(keys[rows], return_index=True, return_inverse=True)
    return rows, rows[first[inverse]]


def components(size: int, edges: Sequence[tuple[Any, Any]]) -> Any:
    """For each row the smallest row number that hangs together with it over the edges; shape (size,), int64."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a = np.concatenate([np.zeros(0, np.int64), *(one for one, _ in edges)])
    b = np.concatenate([np.zeros(0, np.int64), *(other for _, other in edges)])
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    smallest = np.full(labels.max(initial=-1) + 1, size, np.int64)
    np.minimum.at(smallest, labels, np.arange(size))
    return smallest[labels]


def near_duplicates(
    prompts: Any, active: Any, bands: int, places: Places, threshold: float, runtime: Runtime, seconds: Counter[str]
) -> list[tuple[Any, Any]]:
    """Edges between equal prompts (by hash) and between near-duplicates among the active rows.

    What the workers spend is added to `seconds`, a step's CPU seconds.
    """
    import numpy as np

    equal = link(np.where(active, prompts, 0))
    representative = np.zeros(len(prompts), bool)
    representative[equal[1]] = True
    rows = np.flatnonzero(representative)
    pairs = candidates(places, rows, bands, runtime, seconds)
    plan = VerifyPlan(places, threshold)
    chunks = (pairs[at : at + PAIRS_A_TASK] for at in range(0, len(pairs), PAIRS_A_TASK))
    same = [np.zeros(0, bool)]
    for found, cpu_s in runtime.map(verify, plan, chunks):
        same.append(found)
        seconds["duplicates"] += cpu_s  # type: ignore[assignment]
    alike = pairs[np.concatenate(same)]
    return [equal, (alike[:, 0], alike[:, 1])]


def candidates(places: Places, rows: Any, bands: int, runtime: Runtime, seconds: Counter[str]) -> Any:
    """Pairs of rows (smaller first, sorted) that share a band key; shape (pairs, 2), int64."""
    import numpy as np

    size = int(rows.max(initial=0)) + 1
    np.save(places.scratch / "representatives.npy", rows)
    codes = [np.zeros(0, np.int64)]
    for found, cpu_s in runtime.map(_band_candidates, places, range(bands)):
        codes.append(found)
        seconds["duplicates"] += cpu_s  # type: ignore[assignment]
    unique = np.unique(np.concatenate(codes))
    return np.stack([unique // size, unique % size], axis=1)


def _band_candidates(places: Places, band: int) -> tuple[Any, float]:
    """The pairs of one band, each as smaller row * (greatest row + 1) + greater row; CPU s."""
    import numpy as np

    start = time.process_time()
    rows = np.load(places.scratch / "representatives.npy")
    size = int(rows.max(initial=0)) + 1
    stored = (np.load(places.scratch / f"bands-{block:010d}.npy", mmap_mode="r")[band] for block in places.blocks)
    keys = np.concatenate([np.zeros(0, np.uint64), *stored])[rows]
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    # Most keys stand alone: only the runs of equal ones are looked at again.
    shared = np.zeros(len(ranked), bool)
    np.equal(ranked[1:], ranked[:-1], out=shared[1:])
    shared[:-1] |= shared[1:]
    ranked, members = ranked[shared], rows[order[shared]]
    codes = [np.zeros(0, np.int64)]
    for back in range(1, NEIGHBOURS + 1):
        same = ranked[back:] == ranked[:-back]
        if not same.any():
            break
        codes.append(members[:-back][same] * size + members[back:][same])
    return np.unique(np.concatenate(codes)), time.process_time() - start


def verify(plan: VerifyPlan, pairs: Any) -> tuple[Any, float]:
    """Which pairs are at least as alike as the threshold, by the exact Jaccard similarity of their shingles; CPU s."""
    import numpy as np

    start = time.process_time()
    rows, inverse = np.unique(pairs, return_inverse=True)
    texts = cells(plan.places.scratch, "rows", "prompt", plan.places.of(rows))
    sets = [each for at in range(0, len(texts), BATCH) for each in _sets(texts[at : at + BATCH])]
    out = np.zeros(len(pairs), bool)
    for at, (a, b) in enumerate(inverse.reshape(pairs.shape).tolist()):
        one, other = sets[a], sets[b]
        if min(len(one), len(other)) >= plan.threshold * max(len(one), len(other)):
            together = np.concatenate((one, other))
            together.sort()
            both = int(np.count_nonzero(together[1:] == together[:-1]))
            out[at] = both >= plan.threshold * (len(one) + len(other) - both)
    return out, time.process_time() - start


def _sets(texts: Sequence[str]) -> list[Any]:
    """The different shingle hashes of each text, ascending (`numpy.unique` costs three times as much)."""
    import numpy as np

    hashes, offsets = shingle_hashes(texts)
    found = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        ranked = np.sort(hashes[start:end])
        keep = np.empty(len(ranked), bool)
        keep[:1] = True
        np.not_equal(ranked[1:], ranked[:-1], out=keep[1:])
        found.append(ranked[keep])
    return found


def semantic_edges(active: Any, places: Places, settings: Semantic) -> tuple[Any, Any]:
    """Edges between active rows whose prompts say the same in other words."""
    import numpy as np

    rows = np.flatnonzero(active)
    texts = cells(places.scratch, "rows", "asked", places.of(rows))
    pairs = np.array(semantic_pairs(texts, settings), np.int64).reshape(-1, 2)
    return rows[pairs[:, 0]], rows[pairs[:, 1]]
