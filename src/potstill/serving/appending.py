"""One growing file of captured lines: whole groups of lines or nothing of them, whatever the disk does."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Literal
from uuid import uuid4

from potstill.captured_files import sync_folder

Kind = Literal["exchanges", "feedback"]


class Appending:
    """`append` opens the file when it is first needed. After a fault that left it unsure, lines go to a new one.

    The file is locked (flock) while it is open: by this others know that it still grows. Of one writer thread alone.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        self._folder, self._kind = folder, kind
        self._file = -1
        self.size, self.opened = 0, 0.0

    @property
    def is_open(self) -> bool:
        return self._file >= 0

    def append(self, data: bytes, *, sync: bool) -> None:
        """Write whole lines; with `sync` they are on the disk when this returns. Raises OSError: then none is there."""
        if self._file < 0:
            self._open(sync)
        view, written = memoryview(data), 0
        try:
            while written < len(data):
                written += os.write(self._file, view[written:])
            if sync:
                os.fsync(self._file)
        except OSError:
            self._take_back()
            raise
        self.size += len(data)

    def _open(self, sync: bool) -> None:
        """A new file of this process; the lock is taken before a byte is in it, and before anybody took it away."""
        path = self._folder / f"{self._kind}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}-{uuid4().hex[:6]}.jsonl"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink == 0:
                raise OSError(f"{path.name} was removed while it was opened")
            if sync:
                sync_folder(self._folder)
        except OSError:
            os.close(file)
            raise
        self._file, self.size, self.opened = file, 0, monotonic()

    def _take_back(self) -> None:
        """Cut off what was not acknowledged. A file that fsync failed for, or that cannot be cut, gets nothing more:
        a torn line at its end is passed over by readers, and pages that could not be written may be lost without a
        second error (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).
        """
        with suppress(OSError):
            os.ftruncate(self._file, self.size)
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            with suppress(OSError):
                os.close(self._file)
            self._file = -1
