"""Training's run in MLflow while it goes on: there at once, one run in the end, and never in training's way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from potstill.manifest import write_manifest
from potstill.records import Json
from potstill.stage import Shared
from potstill.tracking import Tracking, client, experiment_id, open_tracking
from potstill.tracking_live import live_run
from potstill.tracking_stages import record_folder


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return open_tracking(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")


def shared_for(name: str, uri: str, folder: Path) -> Shared:
    return Shared(name, {"kind": "classification", "labels": ["a"]}, "base", folder, uri, tracked=True)


def line(step: int) -> Json:
    return {"step": step, "loss": 1 / step, "grad_norm": 1.0, "rows": "ab", "time": 1_700_000_000.0 + step}


def runs_of(tracking: Tracking, name: str) -> list[Any]:
    return list(client(tracking).search_runs([experiment_id(tracking, name)]))


def history(tracking: Tracking, run_id: str, key: str = "loss") -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for each in client(tracking).get_metric_history(run_id, key):
        found.setdefault(each.step, []).append(each.value)
    return found


def finish(folder: Path, lines: list[Json]) -> None:
    (folder / "trainer_log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    write_manifest(
        folder, "adapter", settings_passed={}, settings_used={"epochs": 2}, inputs=[], facts={}, key="k1", command=""
    )


def test_lines_are_there_while_training_goes_on_and_the_finished_stage_completes_the_same_run(
    tracking: Tracking, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter-k1"
    folder.mkdir()
    lines = [line(step) for step in range(1, 41)]
    with live_run(shared_for("live", tracking.uri, tmp_path), folder) as live:
        assert live is not None
        for each in lines[:20]:
            live(each)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            found = runs_of(tracking, "live")
            if found and len(history(tracking, found[0].info.run_id)) == 20:
                break
            time.sleep(0.1)
        assert [each.info.status for each in found] == ["RUNNING"]
        assert len(history(tracking, found[0].info.run_id)) == 20
        for each in lines[20:30]:
            live(each)
    finish(folder, lines)
    run_id = record_folder(tracking, "live", folder)
    assert record_folder(tracking, "live", folder) == run_id
    (run,) = runs_of(tracking, "live")
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert history(tracking, run_id) == {each["step"]: [each["loss"]] for each in lines}
    assert run.data.params["epochs"] == "2"
    assert "potstill.live" not in run.data.tags


def test_a_killed_training_goes_on_in_its_run_with_every_step_once(tracking: Tracking, tmp_path: Path) -> None:
    folder = tmp_path / "adapter-k1"
    folder.mkdir()
    shared = shared_for("killed", tracking.uri, tmp_path)

    def train_and_be_killed() -> None:
        with live_run(shared, folder) as live:
            assert live is not None
            for step in range(1, 11):
                live(line(step))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_and_be_killed()
    (run,) = runs_of(tracking, "killed")
    assert run.info.status == "KILLED"
    with live_run(shared, folder) as live:
        assert live is not None
        for step in range(6, 16):  # gone on from the checkpoint of step 5
            live(line(step) | {"time": 1_700_000_100.0 + step})
    (run,) = runs_of(tracking, "killed")
    assert run.info.status == "RUNNING"
    assert history(tracking, run.info.run_id) == {step: [1 / step] for step in range(1, 16)}


def test_a_stage_that_is_done_again_leaves_one_run(tracking: Tracking, tmp_path: Path) -> None:
    folder = tmp_path / "adapter-k1"
    folder.mkdir()
    shared = shared_for("again", tracking.uri, tmp_path)
    for _ in range(2):
        with live_run(shared, folder) as live:
            assert live is not None
            live(line(1))
        finish(folder, [line(1)])
        run_id = record_folder(tracking, "again", folder)
        (folder / "manifest.json").unlink()
    assert [each.info.run_id for each in runs_of(tracking, "again")] == [run_id]


def test_a_server_that_does_not_answer_is_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tracking: Tracking
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "adapter-k1"
    folder.mkdir()
    with live_run(shared_for("gone", "http://127.0.0.1:9", tmp_path), folder) as live:
        assert live is not None
        began = time.monotonic()
        for step in range(1, 2000):
            live(line(step))
        assert time.monotonic() - began < 2.0
    assert capsys.readouterr().err.count("no live curves") == 1
    finish(folder, [line(1)])
    open_tracking(tracking.uri)
    run_id = record_folder(tracking, "gone", folder)
    assert history(tracking, run_id) == {1: [1.0]}


def test_without_tracking_nothing_is_opened(tmp_path: Path) -> None:
    untracked = Shared("x", {"kind": "classification", "labels": ["a"]}, "base", tmp_path, "sqlite:////nowhere/m.db")
    with live_run(untracked, tmp_path / "adapter-k1") as live:
        assert live is None
