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
from potstill.errors import NothingLearned
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


@pytest.mark.parametrize("patience", [None, 1])
def test_asked_to_end_during_the_last_evaluation_a_run_ends_there_and_goes_on(
    patience: int | None, tmp_path: Path
) -> None:
    """What follows, a second phase or an export, must not begin."""
    evaluations: list[int] = []
    whole = toy_run(tmp_path / "whole", at_score=evaluations.append, patience=patience, evals=8)

    def ask(evaluation: int) -> None:
        if evaluation == len(evaluations):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path / "run", at_score=ask, patience=patience, evals=8)
    again: list[int] = []
    assert toy_run(tmp_path / "run", at_score=again.append, patience=patience, evals=8) == whole
    assert again == []


def test_an_evaluation_that_its_checkpoint_does_not_know_of_stands_in_the_log_once(tmp_path: Path) -> None:
    lines = [{"step": 0, "eval_loss": 2.0}, {"step": 1, "loss": 1.0, "grad_norm": 1.0}, {"step": 1, "eval_loss": 0.5}]
    log = tmp_path / "log.jsonl"
    for evaluated, wanted in ((1, lines), (0, lines[:2])):
        log.write_text("".join(json.dumps(each) + "\n" for each in lines))
        watch = Watch(log, 4)
        watch.recall(1, evaluated)
        assert [json.loads(each) for each in log.read_text().splitlines()] == wanted
        assert len(watch.eval_losses) == len(wanted) - 1


def losses_of(watch: Watch, losses: list[float]) -> Watch:
    watch.losses, watch.grad_norms = losses, [1.0 for _ in losses]
    return watch


def test_without_held_out_rows_a_run_is_refused_only_where_its_loss_surely_did_not_fall(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = losses_of(Watch(tmp_path / "few.jsonl", 20), [8.2, 9.2, 3.1, 7.7, 12.0, 6.1, 5.5, 9.0, 4.8, 14.0] * 2)
    assert few.verdict(20)["steps"] == 20
    assert "too few steps to tell" in capsys.readouterr().err
    assert losses_of(Watch(tmp_path / "one.jsonl", 1), [5.0]).verdict(1)["steps"] == 1
    flat = losses_of(Watch(tmp_path / "flat.jsonl", 2000), [5.0 + 0.2 * (at % 3) for at in range(2000)])
    with pytest.raises(NothingLearned, match=r"training loss 5\.\d+ at the start, 5\.\d+ at the end"):
        flat.verdict(2000)
    falling = losses_of(Watch(tmp_path / "falling.jsonl", 40), [5.0 - 0.1 * at for at in range(40)])
    assert falling.verdict(40)["steps"] == 40


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
