"""What a command costs: wall-clock and processor seconds, and the peak memory of it and all processes it starts.

    cost = measured([sys.executable, "-m", "potstill.cli", "distill", "recipe.yaml"])
    cost.wall_s, cost.cpu_s, cost.peak_bytes, cost.stdout

Ten times a second the process tree is looked at. The peak is the largest sum of PSS (shared pages counted once; where
the system tells none, USS: private pages alone), `largest_rss_bytes` that of one process. A spike between two looks
is missed; the kernel's own high-water mark would not miss it, but counts the process that was forked too, before it
became another. Processor seconds are the kernel's for processes that were waited for, or the sum of what each process
had used when last seen, whichever is more: a fork server's workers are waited for by nobody.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.1


@dataclass(frozen=True)
class Cost:
    """What one command cost; `code` is its exit code."""

    code: int
    wall_s: float
    cpu_s: float
    peak_bytes: int
    largest_rss_bytes: int
    stdout: str
    stderr: str


def measured(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    every_s: float = SAMPLE_S,
) -> Cost:
    """Run a command to its end and say what it cost; past the timeout it is ended, with code -9.

    A look at a process of gigabytes holds it up for some hundredths of a second: raise `every_s` where speed counts.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, env=env, start_new_session=True
        )
        peak, largest, usage, used_s = 0, 0, None, dict[tuple[int, float], float]()
        while True:
            found, status, used = os.wait4(process.pid, os.WNOHANG)
            if found:
                process.returncode, usage = os.waitstatus_to_exitcode(status), used
                break
            if timeout_s is not None and time.monotonic() - start > timeout_s:
                os.killpg(process.pid, 9)
            together, alone = look(process.pid, used_s)
            peak, largest = max(peak, together), max(largest, alone)
            time.sleep(every_s)
        wall = time.monotonic() - start
        out.seek(0)
        err.seek(0)
        return Cost(
            process.returncode,
            wall,
            max(usage.ru_utime + usage.ru_stime, sum(used_s.values())),
            peak,
            largest,
            out.read(),
            err.read(),
        )


def look(pid: int, used_s: dict[tuple[int, float], float]) -> tuple[int, int]:
    """Memory in bytes of a process and its descendants now, together and of the largest; processor s into `used_s`."""
    import psutil

    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0, 0
    total = largest = 0
    for each in processes:
        try:
            found, times = each.memory_full_info(), each.cpu_times()
        except (psutil.Error, OSError):
            continue  # it has ended meanwhile
        total += getattr(found, "pss", 0) or found.uss
        largest = max(largest, found.rss)
        used_s[each.pid, each.create_time()] = times.user + times.system
    return total, largest
