"""Runs a child process and measures the memory of it and all that it starts.

Up to twenty times a second the process tree is looked at, less often where a look is dear (the system walks the page
tables, and training is being timed); the peak is the largest sum of PSS (shared pages counted once;
where the system tells none, private pages alone). The peak and the time so far are kept in a file, so that a run that
was stopped and goes on still knows what its first part took. A spike between two looks is missed.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from potstill.manifest import write_atomically

LOOK_EVERY_S = 0.05
LOOK_AT_LEAST_EVERY_S = 0.5
MOST_OF_A_CORE = 0.03  # what looking may cost
WRITE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Watched:
    """What a step has taken so far, all its runs together: memory at most, in bytes, and wall-clock seconds."""

    peak_bytes: int = 0
    seconds: float = 0.0


def run_watched(command: Sequence[str], kept: Path) -> int:
    """Run to the end; returns the exit code (negative: the signal). The child's input closes when this process ends.

    What it takes is added to what the file `kept` holds of earlier runs.
    """
    before = read_watched(kept)
    peak = before.peak_bytes
    start = wrote_at = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            spent = time.thread_time()
            peak = max(peak, tree_bytes(process.pid))
            spent = time.thread_time() - spent
            if time.monotonic() - wrote_at > WRITE_EVERY_S:
                wrote_at = time.monotonic()
                _write(kept, Watched(peak, before.seconds + wrote_at - start))
            time.sleep(min(max(LOOK_EVERY_S, spent / MOST_OF_A_CORE), LOOK_AT_LEAST_EVERY_S))
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        _write(kept, Watched(peak, before.seconds + time.monotonic() - start))
    return process.returncode


def tree_bytes(pid: int) -> int:
    """Memory of a process and its descendants now, in bytes; 0 when it has ended."""
    import psutil

    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for each in processes:
        try:
            found = each.memory_full_info()
        except (psutil.Error, OSError):
            continue  # it has ended meanwhile
        total += getattr(found, "pss", 0) or found.uss
    return int(total)


def read_watched(path: Path) -> Watched:
    """What a file says of the runs so far; nothing where there is none."""
    try:
        return Watched(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return Watched()


def _write(path: Path, watched: Watched) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(watched)).encode())
