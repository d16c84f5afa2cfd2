"""Whether the process that wrote something is still alive, told by a lock that the kernel drops when it dies.

A process number alone would not do: numbers are used again, and a container's numbers mean nothing outside it.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from contextlib import suppress
from pathlib import Path

from potstill.safe_names import safe_name


class Owner:
    """This process's (or rather this object's) name, alive until `close` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._folder = folder
        self._file = os.open(folder / self.name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def alive(self, name: str) -> bool:
        """Whether the owner called `name` still runs; the file of a dead one is removed."""
        safe_name(name, "owner in the ledger")
        try:
            file = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        with suppress(FileNotFoundError):
            (self._folder / name).unlink()
        return False

    def close(self) -> None:
        with suppress(FileNotFoundError):
            (self._folder / self.name).unlink()
        os.close(self._file)
