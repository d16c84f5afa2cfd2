"""Kept answers in this process: the one used longest ago goes first, bounded by number and by bytes."""

from __future__ import annotations

from collections import OrderedDict
from time import time

from potstill.serving.caches.kept import Kept

OVERHEAD_BYTES = 300  # of an entry beside its answer: key, record, slot (tracemalloc: 275)


class Memory:
    """Answers by key, none older than `ttl_s`; for one event loop."""

    def __init__(self, ttl_s: float, max_entries: int, max_bytes: int) -> None:
        self._ttl_s, self._max_entries, self._max_bytes = ttl_s, max_entries, max_bytes
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Kept | None:
        found = self._kept.get(key)
        if found is None:
            return None
        if time() - found.at >= self._ttl_s:
            self._remove(key)
            return None
        self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, kept: Kept) -> None:
        """Keep an answer; one larger than the whole memory is not kept."""
        if key in self._kept:
            self._remove(key)
        size = len(kept.answer) + OVERHEAD_BYTES
        if size > self._max_bytes:
            return
        self._kept[key] = kept
        self.size_bytes += size
        while len(self._kept) > self._max_entries or self.size_bytes > self._max_bytes:
            self._remove(next(iter(self._kept)))

    def _remove(self, key: bytes) -> None:
        self.size_bytes -= len(self._kept.pop(key).answer) + OVERHEAD_BYTES
