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
from tests.stages import toy_training
from tests.stages.toy_training import Outcome, stopped_at, toy_run
from training import checkpoints
from training.watch import Watch


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


def seconds(log: Path) -> float:
    """What the steps of a log took."""
    return float(sum(json.loads(line).get("seconds", 0) for line in log.read_text().splitlines()))


def test_time_and_tokens_of_a_resumed_run_are_those_of_all_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[Watch] = []

    class Kept(Watch):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named, flops=(3.0, 5.0), peak_flops=1e3)
            watched.append(self)

    monkeypatch.setattr(toy_training, "Watch", Kept)
    toy_run(tmp_path / "whole")
    folder = stopped_at(tmp_path / "run", 6)
    first_s = seconds(folder / "trainer_log.jsonl")
    toy_run(folder)
    whole, _, resumed = watched
    assert (resumed.tokens, resumed.learnt_tokens) == (whole.tokens, whole.learnt_tokens) != (0, 0)
    total_s, figures = seconds(folder / "trainer_log.jsonl"), resumed.figures()
    assert total_s > first_s > 0
    assert figures["train_seconds"] == round(total_s, 1)
    assert figures["tokens_per_second"] == pytest.approx(whole.tokens / total_s, abs=0.1)
    used = 3 * whole.tokens + 5 * whole.learnt_tokens
    assert figures["share_of_matrix_product"] == pytest.approx(used / total_s / 1e3, abs=1e-3)


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
