"""The process of one stage of a trial: `python -m potstill.sweeping.child PARENT train RECIPE key=value ... --json`.

The ordinary command, with two things added: it ends when its parent is gone (a sweep that is killed must not go on
training unseen, holding the working folder), and a crash too is told as one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence

from potstill import cli
from potstill.engine_child import wait_for_the_end

GRACE_S = 60.0  # for the step that is under way and its checkpoint


def _end_with(parent: int) -> None:
    wait_for_the_end(parent)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(128 + signal.SIGTERM)


def main(argv: Sequence[str]) -> int:
    """The exit code of the command; 1 with `{"error", "message"}` on standard output for any other exception."""
    threading.Thread(target=_end_with, args=(int(argv[0]),), daemon=True).start()
    try:
        return cli.main(argv[1:])
    except Exception as fault:
        traceback.print_exc()
        print(json.dumps({"error": type(fault).__name__, "message": str(fault)[:2000], "crash": True}))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
