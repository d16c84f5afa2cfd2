"""A run in MLflow that grows while a stage works: training's curves as they happen.

The run is found by its folder's key, so that a stage that is gone on from writes into the same one, and `log_stage`
completes that very run when the stage is done. A thread of its own writes, in batches, and rests a hundred times as
long as it wrote: training never waits for it. What the tracking address refuses is said once and logged at the end.
"""

from __future__ import annotations

import getpass
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.progress import say
from potstill.records import Json
from potstill.stage import Shared
from potstill.tracking import (
    LIVE,
    Identity,
    Tracking,
    client,
    experiment_id,
    find_live_run,
    log_points,
    missing_points,
    open_tracking,
)
from potstill.tracking_stages import STAGE_OF, points_of

EVERY_S = 2.0  # between two writes, at least
REST = 100  # times as long as a write took
SYSTEM_METRICS = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
LAST_S = 20.0  # how long the end waits for the last write


@contextmanager
def live_run(shared: Shared, folder: Path) -> Iterator[Callable[[Json], None] | None]:
    """What takes the lines of a trainer log as they happen (numbers by name, `step`, `time`); None when not tracked.

    `folder` is the stage's, named `<noun>-<key>`. A block that ends by an exception leaves the run KILLED until it is
    gone on from.
    """
    if not shared.tracked:
        yield None
        return
    writer = _Writer(shared, folder)
    writer.start()
    try:
        yield writer.take
    except BaseException:
        writer.end("KILLED")
        raise
    writer.end(None)


def _open_run(tracking: Tracking, shared: Shared, folder: Path) -> str:
    """The id of the folder's live run, made now unless a stopped stage left it."""
    noun, _, key = folder.name.rpartition("-")
    identity = Identity(shared.name, STAGE_OF[noun], "", key)
    api = client(tracking)
    found = find_live_run(tracking, identity)
    if found is not None:
        api.update_run(found, status="RUNNING")
        return found
    tags = {
        LIVE: "true",
        "stage": identity.stage,
        "potstill.key": key,
        "potstill.folder": str(folder),
        "mlflow.user": getpass.getuser(),
        "mlflow.source.type": "LOCAL",
    }
    made = api.create_run(experiment_id(tracking, shared.name), tags=tags, run_name=f"{identity.stage}-{key}")
    return str(made.info.run_id)


@contextmanager
def machine_watched(tracking: Tracking, run_id: str) -> Iterator[None]:
    """MLflow's own system metrics (processor, memory, disk, network, GPU) on the run while the block lasts.

    Nothing where psutil is not installed or `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false` asks for nothing.
    """
    if importlib.util.find_spec("psutil") is None or os.environ.get(SYSTEM_METRICS, "").lower() == "false":
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    make: Any = SystemMetricsMonitor  # its methods carry no types
    monitor = make(run_id, resume_logging=True, tracking_uri=tracking.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


class _Writer(threading.Thread):
    """Takes lines from any thread and writes them from its own; after a fault it takes them and writes no more."""

    def __init__(self, shared: Shared, folder: Path) -> None:
        super().__init__(name="potstill-live-run", daemon=True)
        self._shared, self._folder = shared, folder
        self._lines: list[Json] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._status: str | None = None

    def take(self, line: Json) -> None:
        with self._lock:
            self._lines.append(line)

    def end(self, status: str | None) -> None:
        """Write what is left and set the run's status; waits for it no longer than LAST_S."""
        self._status = status
        self._ended.set()
        self.join(LAST_S)

    def run(self) -> None:
        try:
            self._write_all()
        except Exception as fault:  # whatever a tracking server can answer: it must not reach training
            first = (str(fault).splitlines() or [""])[0][:200]
            say(f"MLflow: no live curves ({type(fault).__name__}: {first}); they are logged when training is done")

    def _write_all(self) -> None:
        tracking = open_tracking(self._shared.tracking_uri)
        run_id = _open_run(tracking, self._shared, self._folder)
        with machine_watched(tracking, run_id):
            self._write_lines(tracking, run_id)
        if self._status is not None:
            client(tracking).set_terminated(run_id, self._status)

    def _write_lines(self, tracking: Tracking, run_id: str) -> None:
        rest, known = 0.0, True  # whether the run may hold these steps from before a kill
        while True:
            ended = self._ended.wait(rest)
            with self._lock:
                lines, self._lines = self._lines, []
            began = time.monotonic()
            points = [point for line in lines for point in points_of(line)]
            new = missing_points(tracking, run_id, points) if known else points
            log_points(tracking, run_id, new)
            if ended:
                break
            known = known and (not points or len(new) < len(points))
            rest = max(EVERY_S, REST * (time.monotonic() - began))
