"""Kept requests of one scope as points, and the one nearest to another: exact, by one matrix product in float32."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING

import numpy as np

from potstill.serving.caches.embedding import DIMENSIONS
from potstill.serving.caches.kept import Kept

if TYPE_CHECKING:
    import numpy.typing as npt

    from potstill.serving.caches.embedding import Vector

INLINE_ROWS = 8192  # some 0.2 ms; more is searched in a thread (the product holds no lock of the interpreter)
BLOCK_ROWS = 16_384  # cosines computed at once


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest entry, and how close the nearest one with another answer is (0 where there is none)."""

    entry: int
    similarity: float
    other: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept answer; `code` is the same for answers that the task calls equal."""

    name: bytes
    number: int
    code: int
    kept: Kept


class Points:
    """At most `max_rows` entries, the oldest overwritten first. Numbers are never given twice."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        rows = min(64, max_rows)
        self._vectors = np.zeros((rows, DIMENSIONS), np.float32)
        self._codes = np.full(rows, 0, np.int64)
        self._entries: list[Entry] = []
        self._row_of: dict[int, int] = {}
        self._next = 0
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, number: int) -> Entry | None:
        row = self._row_of.get(number)
        return None if row is None else self._entries[row]

    def add(self, name: bytes, vector: Vector, code: int, kept: Kept) -> Entry:
        entry = Entry(name, self._numbers, code, kept)
        self._numbers += 1
        row = self._next
        if row == len(self._entries):
            self._grow(row + 1)
            self._entries.append(entry)
        else:
            del self._row_of[self._entries[row].number]
            self._entries[row] = entry
        self._vectors[row], self._codes[row], self._row_of[entry.number] = vector, code, row
        self._next = (row + 1) % self._max_rows
        return entry

    def _grow(self, rows: int) -> None:
        if rows <= len(self._vectors):
            return
        more = min(self._max_rows, 2 * len(self._vectors)) - len(self._vectors)
        self._vectors = np.vstack([self._vectors, np.zeros((more, DIMENSIONS), np.float32)])
        self._codes = np.concatenate([self._codes, np.full(more, 0, np.int64)])

    async def nearest(self, vector: Vector, ttl_s: float) -> Near | None:
        """The nearest entry that is not too old; None where there is none."""
        rows = len(self._entries)
        if not rows:
            return None
        oldest = time() - ttl_s
        if self._entries[self._next % rows].kept.at <= oldest:
            self._forget(oldest)
            rows = len(self._entries)
        entries, vectors, codes = self._entries, self._vectors[:rows], self._codes[:rows]
        if rows <= INLINE_ROWS:
            found = search(vectors, codes, vector)
        else:
            found = await asyncio.to_thread(search, vectors, codes, vector)
        row, similarity, other = found
        if row < 0:
            return None
        # While the thread looked, the row may have got another entry: what it is now is what counts.
        return Near(entries[row].number, min(1.0, similarity, float(vectors[row] @ vector)), max(0.0, other))

    def _forget(self, oldest: float) -> None:
        """Drop all that is too old, in order, so that the oldest are overwritten first again."""
        order = [*range(self._next, len(self._entries)), *range(self._next)]
        rows = [row for row in order if row < len(self._entries) and self._entries[row].kept.at > oldest]
        kept = [self._entries[row] for row in rows]
        vectors, codes = self._vectors[rows], self._codes[rows]
        self._vectors, self._codes = np.zeros_like(self._vectors), np.full_like(self._codes, -1)
        self._vectors[: len(rows)], self._codes[: len(rows)] = vectors, codes
        self._entries, self._next = kept, len(kept) % self._max_rows
        self._row_of = {entry.number: row for row, entry in enumerate(kept)}


def search(vectors: npt.NDArray[np.float32], codes: npt.NDArray[np.int64], vector: Vector) -> tuple[int, float, float]:
    """Row and cosine of the nearest, and the largest cosine among those with another code; row -1 where none is close.

    In blocks, so that the memory beside the points is bounded.
    """
    best_of: dict[int, tuple[float, int]] = {}
    for start in range(0, len(vectors), BLOCK_ROWS):
        cosines = vectors[start : start + BLOCK_ROWS] @ vector
        block = codes[start : start + BLOCK_ROWS]
        row = int(cosines.argmax())
        code = int(block[row])
        _better(best_of, code, float(cosines[row]), start + row)
        rest = np.where(block == code, np.float32(-1), cosines)
        row = int(rest.argmax())
        _better(best_of, int(block[row]), float(rest[row]), start + row)
    best = sorted(((similarity, row, code) for code, (similarity, row) in best_of.items()), reverse=True)
    similarity, row, _ = best[0]
    if similarity <= 0:
        return -1, 0.0, 0.0
    return row, similarity, max(0.0, best[1][0]) if len(best) > 1 else 0.0


def _better(best_of: dict[int, tuple[float, int]], code: int, similarity: float, row: int) -> None:
    known = best_of.get(code)
    if known is None or similarity > known[0]:
        best_of[code] = similarity, row
