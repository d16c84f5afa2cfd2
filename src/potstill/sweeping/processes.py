"""A stage in a process of its own, watched.

Not in this process: what torch, CUDA and the allocators took is surely free again only when a process ends; the peak
memory in a trial's log is that trial's; and a trial that the system kills for memory is one failed trial, not the end
of the sweep. The price is importing torch once a trial.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.pipeline import locked
from potstill.progress import say
from potstill.records import Json

POLL_S = 0.25
STOP_S = 60.0
LOCK_S = 60.0  # an orphan of a killed sweep needs a moment to notice and end


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended; `told` is its last JSON object, `stopped` that we ended it."""

    code: int
    told: Json
    stopped: bool = False


def run_stage(words: Sequence[str], give_up: Callable[[], bool] = lambda: False) -> Ended:
    """Run `potstill WORDS --json`; ended early once `give_up` says so. Its progress goes to our standard error."""
    with tempfile.TemporaryFile() as out:
        command = [sys.executable, "-m", "potstill.sweeping.child", str(os.getpid()), *words, "--json"]
        process = subprocess.Popen(
            # A group of its own: of Ctrl-C in a terminal it hears once, from us, and has time for a checkpoint.
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            env=_environment(),
            process_group=0,
        )
        stopped = False
        try:
            while process.poll() is None:
                if give_up():
                    stopped = True
                    break
                time.sleep(POLL_S)
        finally:
            code = _stop(process)
        out.seek(0)
        return Ended(code, _last_object(out.read().decode(errors="replace")), stopped)


def _environment() -> dict[str, str]:
    """Ours, with the library findable where it is not installed."""
    source = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{known}" if known else source}


def _stop(process: subprocess.Popen[bytes]) -> int:
    """The exit code; a process that still runs gets SIGTERM, and SIGKILL a minute later."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.stdin is not None:
        process.stdin.close()
    return process.wait()


def _last_object(text: str) -> Json:
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def wait_until_free(work_dir: Path) -> None:
    """Return once no other potstill works in the folder; raises PotstillError when it does not end soon."""
    work_dir.mkdir(parents=True, exist_ok=True)
    deadline, told = time.monotonic() + LOCK_S, False
    while True:
        try:
            with locked(work_dir):
                return
        except PotstillError:
            if time.monotonic() > deadline:
                raise
            if not told:
                say(f"sweep: waiting for another potstill in {work_dir}")
                told = True
            time.sleep(POLL_S)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit(143) inside the block, so that what is running is stopped on the way out."""

    def leave(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
