"""Counts of requests shared by all workers of one machine: a table in memory that they all map, behind one file lock.

It is a storage of the `limits` library, whose sliding-window counter reads and writes here, and it counts calls in
flight besides. A look costs microseconds and no message to anybody. A worker's calls in flight stand in a column of its
own, which the system frees when the worker dies (its lock goes with it), so a kill keeps no place taken.

Row of 128 bytes: hash of the name (16), number of the window (8), count before (8), count now (8), unused (24), and one
16-bit count of calls in flight for each of 32 workers (64).
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
from math import floor
from pathlib import Path
from typing import BinaryIO

from limits.storage import Storage
from limits.storage.base import SlidingWindowCounterSupport

from potstill.errors import PotstillError

WORKERS = 32
_ROWS, _WORDS, _SHORTS = 16_384, 16, 64
_PROBES = 64
_HASH, _WINDOW, _BEFORE, _NOW, _COLUMNS = 0, 2, 3, 4, 32
_PATIENCE_S, _NAP_S = 0.05, 0.0001
_STALE_S = 180


class TableBusy(PotstillError):
    """The table is full, or its lock was held too long (by a worker that was stopped in the middle)."""


class RateTable(Storage, SlidingWindowCounterSupport):
    """The table in `folder`, opened as one more worker. Not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = _opened(folder / "limits.table", _ROWS * _WORDS * 8)
        self._lock = _Lock(self._file.fileno())
        self.seen: tuple[int, float, int] = (0, 0.0, 0)  # window before, its weight, this window: at the last hit
        self._map = mmap.mmap(self._file.fileno(), _ROWS * _WORDS * 8)
        self._words = memoryview(self._map).cast("q")
        self._shorts = memoryview(self._map).cast("H")
        self._rows: dict[str, int] = {}
        self._hashes: dict[str, tuple[int, int]] = {}
        self._place, self._worker = self._take_place()
        with self._locked():
            for row in range(_ROWS):
                self._shorts[row * _SHORTS + _COLUMNS + self._worker] = 0

    def close(self) -> None:
        """Give the worker's place back, with whatever it counted as in flight."""
        with self._locked():
            for row in set(self._rows.values()):
                self._shorts[row * _SHORTS + _COLUMNS + self._worker] = 0
        self._words.release()
        self._shorts.release()
        self._map.close()
        self._file.close()
        self._place.close()

    def enter(self, name: str, most: int) -> bool:
        """Count one more call in flight, if that makes no more than `most` over all workers."""
        with self._locked():
            row = self._row(name)
            first = row * _SHORTS + _COLUMNS
            if sum(self._shorts[first : first + WORKERS]) >= most:
                self._bury(first)
                if sum(self._shorts[first : first + WORKERS]) >= most:
                    return False
            self._shorts[first + self._worker] += 1
            return True

    def leave(self, name: str) -> None:
        with self._locked():
            at = self._row(name) * _SHORTS + _COLUMNS + self._worker
            self._shorts[at] = max(0, self._shorts[at] - 1)

    def in_flight(self, name: str) -> int:
        with self._locked():
            first = self._row(name) * _SHORTS + _COLUMNS
            return sum(self._shorts[first : first + WORKERS])

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """As the library's own storages: count `amount` unless the weighted count would pass `limit`."""
        with self._locked():
            before, weight, now, _ = self._window(key, expiry)
            self.seen = before, weight, now
            if floor(before * weight / expiry + now) + amount > limit:
                return False
            self._words[self._row(key) * _WORDS + _NOW] = now + amount
            self.seen = before, weight, now + amount
            return True

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        with self._locked():
            return self._window(key, expiry)

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        with self._locked():
            at = self._row(key) * _WORDS
            self._words[at + _BEFORE] = self._words[at + _NOW] = 0

    def _window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Counts of the window before and of this one, with the seconds that each still weighs."""
        at = self._row(key) * _WORDS
        words, now = self._words, time.time()
        window, past_s = int(now // expiry), now % expiry
        if words[at + _WINDOW] != window:
            words[at + _BEFORE] = words[at + _NOW] if words[at + _WINDOW] == window - 1 else 0
            words[at + _NOW] = 0
            words[at + _WINDOW] = window
        return words[at + _BEFORE], expiry - past_s, words[at + _NOW], 2 * expiry - past_s

    def _row(self, name: str) -> int:
        """The row of a name, a new one where it has none; raises TableBusy when there is none left."""
        found = self._hashes.get(name)
        if found is None:
            digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
            found = self._hashes[name] = struct.unpack("<qq", digest)
        first, second = found
        words = self._words
        known = self._rows.get(name)
        if known is not None and words[known * _WORDS] == first and words[known * _WORDS + 1] == second:
            return known
        free = -1
        for step in range(_PROBES):
            row = (first + step) % _ROWS
            at = row * _WORDS
            if words[at] == first and words[at + 1] == second:
                self._rows[name] = row
                return row
            if free < 0 and self._is_free(row):
                free = row
        if free < 0:
            raise TableBusy("the table of limits is full of keys that were used within minutes")
        at = free * _WORDS
        words[at + _WINDOW] = words[at + _BEFORE] = words[at + _NOW] = 0
        words[at], words[at + 1] = first, second
        self._rows[name] = free
        return free

    def _is_free(self, row: int) -> bool:
        at = row * _WORDS
        if not self._words[at] and not self._words[at + 1]:
            return True
        first = row * _SHORTS + _COLUMNS
        # Windows are of 60 s throughout (`limits.py`).
        stale = self._words[at + _WINDOW] and self._words[at + _WINDOW] * 60 < time.time() - _STALE_S
        return bool(stale) and not any(self._shorts[first : first + WORKERS])

    def _bury(self, first: int) -> None:
        """Take away what dead workers count in the row whose columns begin at `first`."""
        for worker in range(WORKERS):
            if worker != self._worker and self._shorts[first + worker] and not self._lives(worker):
                self._shorts[first + worker] = 0

    def _lives(self, worker: int) -> bool:
        with _opened(self._place_of(worker)) as place:
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _take_place(self) -> tuple[BinaryIO, int]:
        for worker in range(WORKERS):
            place = _opened(self._place_of(worker))
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                place.close()
                continue
            return place, worker
        raise TableBusy(f"{self._folder}: {WORKERS} workers are at it already; use serve.state.redis for more")

    def _place_of(self, worker: int) -> Path:
        return self._folder / f"limits.{worker}.lock"

    def _locked(self) -> _Lock:
        """Alone with the table; raises TableBusy rather than wait for long: this runs in the event loop."""
        return self._lock

    # What else the library asks a storage for; its sliding window needs none of it.

    @property
    def base_exceptions(self) -> type[Exception]:
        return TableBusy

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        raise NotImplementedError

    def get(self, key: str) -> int:
        raise NotImplementedError

    def get_expiry(self, key: str) -> float:
        raise NotImplementedError

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        raise NotImplementedError

    def clear(self, key: str) -> None:
        raise NotImplementedError


class _Lock:
    """The lock of a file, as a context. (A generator as context would cost as much as all that is done under it.)"""

    __slots__ = ("_file",)

    def __init__(self, file: int) -> None:
        self._file = file

    def __enter__(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _wait_for(self._file)

    def __exit__(self, *fault: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)


def _wait_for(file: int) -> None:
    """Holders keep the lock for microseconds, unless they lose their core."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        time.sleep(_NAP_S)  # the holder may be waiting for this very core
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            continue
    raise TableBusy("the table of limits is held by a worker that does not go on")


def _opened(path: Path, size: int = 0) -> BinaryIO:
    """The file, made at this size where it is smaller, for its owner alone; not passed on to child processes."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if os.fstat(file).st_size < size:
        os.ftruncate(file, size)
    return os.fdopen(file, "r+b", buffering=0)
