"""Runs a program for as long as its starter lives: `python -m potstill.serving.leash --parent PID -- PROGRAM ...`.

For engines that would outlive a killed server. The program and all that it starts stand in one process group, which
ends when standard input closes, the starter is gone, or SIGTERM arrives; first asked, then killed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

ASKED_S = 4.0  # less than the patience of whoever ends us


def main(argv: Sequence[str] | None = None) -> int:
    """The program's exit code, or 0 when it was ended by us."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--")
    parent = int(words[words.index("--parent", 0, at) + 1]) if "--parent" in words[:at] else os.getppid()
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the starter decides
    try:
        program = subprocess.Popen(words[at + 1 :], stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as fault:
        print(f"{words[at + 1]}: cannot be started ({fault.strerror}); install it or name it", file=sys.stderr)
        return 127
    try:
        while not ended and os.getppid() == parent:
            with suppress(InterruptedError):
                ready, _, _ = select.select([0], [], [], 0.2)
                if ready and not os.read(0, 4096):
                    break
            if program.poll() is not None:
                return program.returncode
    finally:
        _end(program)
    return 0


def _end(program: subprocess.Popen[bytes]) -> None:
    """The whole group: what the program started may hold the accelerator's memory."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGTERM)
    end = monotonic() + ASKED_S
    with suppress(subprocess.TimeoutExpired):
        program.wait(max(0.0, end - monotonic()))
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()


if __name__ == "__main__":
    sys.exit(main())
