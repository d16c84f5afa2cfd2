"""Runs a child process and measures the memory of it and all that it starts.

Up to twenty times a second the process tree is looked at, less often where a look is dear (the system walks the page
tables, and training is being timed); the peak is the largest sum of PSS (shared pages counted once;
where the system tells none, private pages alone). The peak so far is kept in a file, so that a run that was stopped
and goes on still knows the peak of its first part. A spike between two looks is missed.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from potstill.manifest import write_atomically

LOOK_EVERY_S = 0.05
MOST_OF_A_CORE = 0.03  # what looking may cost
WRITE_EVERY_S = 1.0


def run_watched(command: Sequence[str], peak_file: Path) -> int:
    """Run to the end; returns the exit code (negative: the signal). The child's input closes when this process ends."""
    peak = read_peak(peak_file) or 0
    written = peak
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wrote_at = time.monotonic()
    try:
        while process.poll() is None:
            looked_at = time.monotonic()
            peak = max(peak, tree_bytes(process.pid))
            took = time.monotonic() - looked_at
            if peak > written and time.monotonic() - wrote_at > WRITE_EVERY_S:
                _write_peak(peak_file, peak)
                written, wrote_at = peak, time.monotonic()
            time.sleep(max(LOOK_EVERY_S, took / MOST_OF_A_CORE))
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        if peak > written:
            _write_peak(peak_file, peak)
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


def read_peak(path: Path) -> int | None:
    """The peak that is kept in a file, in bytes."""
    try:
        return int(json.loads(path.read_text())["peak_bytes"])
    except (OSError, ValueError, KeyError):
        return None


def _write_peak(path: Path, peak: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"peak_bytes": peak}).encode())
