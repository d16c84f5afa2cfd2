"""What a worker holds of each budget, written to memory that outlives it: a kill at any moment loses nothing.

A journal is a mapped file of pairs of 64-bit numbers, one pair an account: what is held for calls in flight, and what
has been spent since the account was opened. A write is one store of eight bytes, so no half of it is ever seen. The
worker holds the file's lock for as long as it lives: whoever gets the lock knows that it is dead, and settles for it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

SLOTS = 65_536
_BYTES = SLOTS * 16
_PATTERN = "*.journal"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Journal:
    """The journal of one worker: `name` is that of the worker too. A new one is all zeros."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The boot is in the name: after a power cut the pages that were not yet on the disk are gone, and with them the
        # truth, so a journal of an earlier boot is not believed.
        self.name = f"{uuid4().hex}-{_boot()}"
        self._path = folder / f"{self.name}.journal"
        making = folder / f"{self.name}.making"
        self._file = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, _BYTES)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        making.rename(self._path)  # locked before anybody can find it
        self._map = mmap.mmap(self._file, _BYTES)
        self.words = memoryview(self._map).cast("q")

    def close(self) -> None:
        """End it; what still stands in it must have been settled."""
        with suppress(FileNotFoundError):
            self._path.unlink()
        self.words.release()
        self._map.close()
        os.close(self._file)


class DeadJournal:
    """What a worker that is no more left behind; `words` is None where it cannot be believed."""

    def __init__(self, path: Path, file: int) -> None:
        self.name, self._path = path.stem, path
        believed = path.stem.endswith(f"-{_boot()}") and os.fstat(file).st_size == _BYTES
        self.words = memoryview(os.pread(file, _BYTES, 0)).cast("q") if believed else None

    def bury(self) -> None:
        """Take it away, once the ledger has been told."""
        self._path.unlink(missing_ok=True)


def dead_journals(folder: Path, own: str = "") -> Iterator[DeadJournal]:
    """Each journal whose worker is dead, locked while the caller looks at it."""
    for path in sorted(folder.glob(_PATTERN)):
        if path.stem == own:
            continue
        with suppress(FileNotFoundError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_nlink:  # else another worker has just buried it
                    yield DeadJournal(path, file)
            except BlockingIOError:
                continue
            finally:
                os.close(file)


def workers_with_journals(folder: Path) -> set[str]:
    """Names of all workers, living or dead, that have a journal here."""
    return {path.stem for path in folder.glob(_PATTERN)}


def _boot() -> str:
    try:
        return _BOOT.read_text().strip().replace("-", "")[:12]
    except OSError:  # not Linux
        return "any"
