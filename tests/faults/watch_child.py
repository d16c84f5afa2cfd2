"""One watcher in a process of its own, to be killed at any moment: `python -m tests.faults.watch_child FOLDER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from potstill.pipeline import locked
from tests.unit.test_watch_loop import SETTINGS
from tests.unit.watch_place import World

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    slow = lambda _: time.sleep(0.01)  # noqa: E731 (a kill shall find every point)
    with locked(folder / "watch"):
        world = World(folder, SETTINGS, slow)
        world.hours = float((folder / "hours").read_text())
        print("ready", flush=True)
        world.watcher().run_once()
