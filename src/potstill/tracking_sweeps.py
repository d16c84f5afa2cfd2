"""A sweep in MLflow: one run for the sweep, the ordinary `train` run of each trial nested under it.

Asked for again after a kill, everything is found by its tags, so that no run stands twice.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.records import Json
from potstill.safe_names import safe_name
from potstill.tracking import Point, Tracking, client, experiment_id, flat_numbers, log_points, metric_key
from potstill.tracking_stages import record_folder

PARENT = "mlflow.parentRunId"
SWEEP = "potstill.sweep"


@contextmanager
def sweep_run(tracking: Tracking, experiment: str, key: str, params: Mapping[str, str]) -> Iterator[str]:
    """The id of the sweep's run, made or taken up again; FINISHED when the block ends well, else KILLED."""
    from mlflow.entities import Param

    api = client(tracking)
    run_id = _found(tracking, experiment, f"tags.stage = 'sweep' and tags.`{SWEEP}` = '{key}'")
    if run_id is None:
        tags = {"stage": "sweep", SWEEP: key, "mlflow.user": getpass.getuser(), "mlflow.source.type": "LOCAL"}
        made = api.create_run(experiment_id(tracking, experiment), tags=tags, run_name=f"sweep-{key}")
        run_id = str(made.info.run_id)
    else:
        api.update_run(run_id, status="RUNNING")
    api.log_batch(run_id, params=[Param(metric_key(name), value) for name, value in params.items()])
    try:
        yield run_id
    except BaseException:
        api.set_terminated(run_id, "KILLED")
        raise
    api.set_terminated(run_id, "FINISHED")


def record_trial(tracking: Tracking, experiment: str, parent: str, key: str, trial: Json, work_dir: Path) -> str:
    """The id of a trial's run under the sweep's: that of its adapter where there is one, else one that says why not.

    An adapter may belong to two sweeps: it is nested under the first, and tagged with its number in both.
    """
    api = client(tracking)
    tag = f"{SWEEP}.{key}"
    if trial["state"] == "done":
        run_id = record_folder(tracking, experiment, work_dir / safe_name(trial["folder"], "trial's folder"))
    else:
        known = _found(tracking, experiment, f"tags.`{tag}` = '{trial['number']}'")
        run_id = known or _without_adapter(tracking, experiment, key, trial)
    tags = api.get_run(run_id).data.tags
    if PARENT not in tags:
        api.set_tag(run_id, PARENT, parent)
    if tags.get(tag) != str(trial["number"]):
        api.set_tag(run_id, tag, str(trial["number"]))
    return run_id


def _without_adapter(tracking: Tracking, experiment: str, key: str, trial: Json) -> str:
    """A run of a trial that ended early, with its settings and the reason."""
    from mlflow.entities import Param

    api = client(tracking)
    tags = {
        "stage": "train",
        f"{SWEEP}.{key}": str(trial["number"]),
        "potstill.state": trial["state"],
        "mlflow.note.content": str(trial["reason"]),
        "mlflow.user": getpass.getuser(),
        "mlflow.source.type": "LOCAL",
    }
    name = f"trial-{trial['number']}-{key}"
    run_id = str(api.create_run(experiment_id(tracking, experiment), tags=tags, run_name=name).info.run_id)
    api.log_batch(run_id, params=[Param(metric_key(each), str(value)) for each, value in trial["values"].items()])
    api.set_terminated(run_id, "FAILED" if trial["state"] == "failed" else "KILLED")
    return run_id


def record_sweep(tracking: Tracking, run_id: str, found: Json, folder: Path) -> None:
    """What the sweep found, on its run: metrics of the best, its settings as tags, table and page as artifacts.

    Tags, since a sweep may go on with more trials and find a better one: MLflow keeps a parameter for good.
    """
    api = client(tracking)
    if found["best"] is not None:
        best: dict[str, Any] = found["trials"][found["best"]]
        figures = {f"best.{name}": best[name] for name in ("score", "low", "high", "loss")}
        log_points(tracking, run_id, [Point(name, value) for name, value in flat_numbers(figures).items()])
        shown = {"best.trial": best["number"], "undecided": found["undecided"], **best["values"]}
        for name, value in shown.items():
            name = f"best.{name}" if name in best["values"] else f"potstill.{name}"
            api.set_tag(run_id, metric_key(name), str(value))
    log_points(tracking, run_id, [Point("trials", len(found["trials"]))])
    for path in ("sweep.json", "sweep.html"):
        api.log_artifact(run_id, str(folder / path))


def _found(tracking: Tracking, experiment: str, wanted: str) -> str | None:
    runs = client(tracking).search_runs([experiment_id(tracking, experiment)], wanted, max_results=1)
    return str(runs[0].info.run_id) if runs else None
