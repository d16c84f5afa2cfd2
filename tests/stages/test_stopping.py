"""Asked to end (SIGTERM, Ctrl-C): a checkpoint, a clean end, an exit code that says which, and the same bits after."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from potstill import cli
from potstill.commands import stages
from tests.stages.toy_training import Outcome, stopped_at, toy_run
from training import checkpoints


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return toy_run(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("during", ["a step", "an evaluation"])
def test_a_run_that_is_asked_to_end_leaves_a_checkpoint_of_that_very_step(
    undisturbed: Outcome, tmp_path: Path, number: signal.Signals, during: str
) -> None:
    folder = tmp_path / "run"

    def ask(evaluation: int) -> None:
        if during == "an evaluation" and evaluation == 3:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    if during == "a step":
        stopped_at(folder, 5, number, checkpoint_steps=None)
    else:
        with pytest.raises(KeyboardInterrupt) as stopped:
            toy_run(folder, at_score=ask, checkpoint_steps=None)
        assert stopped.value.args == (number,)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    logged = [json.loads(line)["step"] for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    assert newest.name == checkpoints.step_name(max(logged))
    assert toy_run(folder) == undisturbed


def test_a_second_request_to_end_is_obeyed_at_once(undisturbed: Outcome, tmp_path: Path) -> None:
    reached = []

    def ask_twice(evaluation: int) -> None:
        if evaluation == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(evaluation)

    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path / "run", at_score=ask_twice)
    assert reached == []
    assert toy_run(tmp_path / "run") == undisturbed


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (KeyboardInterrupt(signal.SIGINT), 130), (KeyboardInterrupt(signal.SIGTERM), 143)],
)
def test_the_command_ends_with_the_code_of_the_signal(
    raised: KeyboardInterrupt, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(arguments: Any) -> int:
        raise raised

    monkeypatch.setattr(stages, "run", stop)
    assert cli.main(["train", "recipe.yaml"]) == code
    assert "goes on next time" in capsys.readouterr().err


def test_a_patience_that_ends_a_run_ends_it_at_the_same_step_after_a_stop(tmp_path: Path) -> None:
    whole = toy_run(tmp_path / "whole", patience=1, evals=8)
    assert len(whole.steps) < 9, "patience did not end the run"
    folder, asked = tmp_path / "stopped", []

    def ask(evaluation: int) -> None:
        if not asked and evaluation == 2:
            asked.append(evaluation)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        toy_run(folder, patience=1, evals=8, at_score=ask)
    assert toy_run(folder, patience=1, evals=8) == whole
