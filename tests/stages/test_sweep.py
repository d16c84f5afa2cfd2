"""A sweep of real trainings: the same table through kills, the same runs in MLflow however often it is asked for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from potstill import cli
from potstill.manifest import MANIFEST
from potstill.pipeline import locked
from potstill.sweeping.processes import run_stage
from tests.stages.test_whole_way import exchange
from tests.stages.tiny_llama import tiny_base

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """\
name: tiny
task: {{kind: classification, labels: [bad, good, plain]}}
base_model: {base}
work_dir: work
distill:
  sources: [{{path: log.jsonl}}]
  split: {{test: 0.2, validation: 0.2}}
  duplicates: {{threshold: 1.0}}
train:
  {{learning_rate: 0.01, epochs: 1, batch_tokens: 128, window: 128, evals: 4, score_rows: 12, chat_template: base}}
evaluate: {{margin: 0.2}}
register: {{model: tiny}}
sweep:
  trials: 3
  keys:
    train.learning_rate: {{choice: [0.01, 0.02, 1.0e-8]}}
"""
TIMES = ("tokens_per_second", "minutes")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    base = tiny_base(folder / "base")
    (folder / "log.jsonl").write_text("".join(json.dumps(exchange(at)[0]) + "\n" for at in range(120)))
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base.path))
    return folder


def swept(place: Path, work: Path, errors: Path) -> subprocess.Popen[bytes]:
    """`potstill sweep` without MLflow."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    words = ["sweep", str(place / "recipe.yaml"), f"work_dir={work}", "--no-track", "--json"]
    with errors.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "potstill.cli", *words],
            cwd=place, env=environment, stdout=subprocess.PIPE, stderr=stream,
        )  # fmt: skip


def finished(process: subprocess.Popen[bytes], errors: Path) -> Any:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, errors.read_text()
    return json.loads(out)


@pytest.fixture(scope="module")
def whole(place: Path) -> Any:
    """What a sweep that nobody disturbed printed."""
    return finished(swept(place, place / "work", place / "errors"), place / "errors")


def trials_of(found: Any) -> list[Any]:
    return [{name: value for name, value in trial.items() if name not in TIMES} for trial in found["trials"]]


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes], errors: Path) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None, errors.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_trials_end_with_figures_or_a_reason_and_the_best_is_named(whole: Any) -> None:
    first, *others = whole["trials"]
    assert (first["state"], first["default"], first["rows"]) == ("done", True, 12)
    assert first["low"] < first["score"] < first["high"]
    states = {trial["values"]["train.learning_rate"]: trial["state"] for trial in others}
    assert states == {0.02: "done", 1e-8: "nothing learned"}
    assert next(t["reason"] for t in others if t["reason"]).startswith("nothing learned: validation loss")
    assert whole["best"] in {trial["number"] for trial in whole["trials"] if trial["state"] == "done"}


def test_sweep_killed_twice_ends_with_the_table_of_one_that_was_not(place: Path, whole: Any, tmp_path: Path) -> None:
    """First kill -9 for all of it in the middle of a training, then SIGTERM for the sweep alone."""
    work, errors = tmp_path / "work", tmp_path / "errors"
    (work / "tiny").mkdir(parents=True)
    shutil.copy(place / "work" / "redaction.key", work)
    first = whole["trials"][0]["folder"]
    for folder in [first, *(path.name for path in (place / "work" / "tiny").glob("dataset-*"))]:
        shutil.copytree(place / "work" / "tiny" / folder, work / "tiny" / folder)
    second = work / "tiny" / whole["trials"][1]["folder"]

    process = swept(place, work, errors)
    wait_until(lambda: any(second.glob("checkpoints/step-*/manifest.json")), process, errors)
    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        each.kill()
    process.communicate()
    assert not (second / MANIFEST).exists(), "the trial ended before it could be killed"

    process = swept(place, work, errors)
    wait_until(lambda: errors.read_text().count("train: unfinished, going on") == 1, process, errors)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    with locked(work / "tiny"):  # no training was left behind
        assert not (second / MANIFEST).exists()

    found = finished(swept(place, work, errors), errors)
    assert "going on from step-" in errors.read_text()
    assert trials_of(found) == trials_of(whole)
    assert {name: found[name] for name in ("sweep", "best", "overrides", "comparisons")} == {
        name: whole[name] for name in ("sweep", "best", "overrides", "comparisons")
    }


def runs_of(place: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'work' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_runs_of_a_sweep_stand_once_and_nested_however_often_it_is_asked_for(
    place: Path, whole: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for _ in range(2):
        assert cli.main(["sweep", str(place / "recipe.yaml"), "--json"]) == 0
        assert trials_of(json.loads(capsys.readouterr().out)) == trials_of(whole)
    runs = runs_of(place)
    (parent,) = [run for run in runs if run.data.tags["stage"] == "sweep"]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best.score"] == pytest.approx(whole["trials"][whole["best"]]["score"])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.data.tags[f"potstill.sweep.{whole['sweep']}"] for run in children) == ["0", "1", "2"]
    assert len(runs) == 4
    assert sorted(run.info.status for run in children) == ["FINISHED", "FINISHED", "KILLED"]


def test_trial_whose_sweep_is_gone_ends(place: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    nobody = str(os.getppid())  # not the parent of what we start
    words = [sys.executable, "-m", "potstill.sweeping.child", nobody, "train", str(place / "recipe.yaml")]
    done = subprocess.run(words, env=environment, cwd=place, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGTERM


def test_trial_that_is_given_up_is_ended_and_leaves_the_folder_free(place: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    asked: list[None] = []

    def at_the_third_look() -> bool:
        asked.append(None)
        return len(asked) > 2

    ended = run_stage(["train", str(place / "recipe.yaml"), f"work_dir={work}", "--no-track"], at_the_third_look)
    assert ended.stopped
    assert ended.code != 0
    (work / "tiny").mkdir(parents=True, exist_ok=True)
    with locked(work / "tiny"):
        assert not list(work.glob("tiny/adapter-*/manifest.json"))
