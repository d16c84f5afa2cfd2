"""The second phase: it begins where the first ended, goes on after a kill there, and refuses what teaches nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from potstill import chat, models
from potstill.dataset import write_preferences
from potstill.errors import NothingLearned
from potstill.preferences import Opinion, Preference
from tests.stages.datasets import finish, write_rows
from tests.stages.test_training import LABELS, example, shared_for
from tests.stages.tiny_llama import tiny_base
from training import run
from training.scoring import Score, Scorer
from training.then import FINISHED, LOG, Then, keep_finished, refuse_nothing_preferred, take_finished

ROOT = Path(__file__).resolve().parents[2]
DPO = {"objective": "dpo", "learning_rate": 0.01, "epochs": 3, "batch_tokens": 256}


def judged(at: int) -> tuple[Preference, list[Opinion]]:
    """The right label over the next one, and both as opinions."""
    one = example(at)
    wrong = LABELS[(at + 1) % 3]
    said: dict[str, Any] = {"conversation": one.conversation, "messages": one.messages, "source": "correction"}
    return Preference(id=f"p{at}", chosen=one.answer, rejected=wrong, **said), [
        Opinion(id=f"{at}:desirable", answer=one.answer, desirable=True, **said),
        Opinion(id=f"{at}:undesirable", answer=wrong, desirable=False, **said),
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def dataset_of(folder: Path, train: range, validation: range) -> Path:
    write_rows(folder, [example(at) for at in range(90)], [example(at) for at in range(300, 330)])
    made = {"train": [judged(at) for at in train], "validation": [judged(at) for at in validation]}
    write_preferences(
        folder,
        {split: [pair for pair, _ in rows] for split, rows in made.items()},  # type: ignore[misc]
        {split: [each for _, pair in rows for each in pair] for split, rows in made.items()},  # type: ignore[misc]
    )
    return finish(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset_of(tmp_path_factory.mktemp("dataset"), range(60), range(300, 330))


def settings_with(then: Any, **changes: Any) -> run.Settings:
    values: dict[str, Any] = {
        "learning_rate": 0.005, "epochs": 1, "batch_tokens": 256, "window": 128, "evals": 2, "score_rows": 6,
        "chat_template": "base", "lora": {"dropout": 0.1}, "checkpoint_steps": 5, "then": then,
    }  # fmt: skip
    return run.Settings(**(values | changes))


def trained(base: models.Base, dataset: Path, out: Path, then: Any = DPO, **changes: Any) -> Any:
    out.mkdir(parents=True, exist_ok=True)
    return run.main(settings_with(then, **changes), shared_for(base, out.parent), {"dataset": dataset}, out)


def lines(out: Path, log: str = LOG) -> list[Any]:
    """The log without what differs between two runs of the same training."""
    found = map(json.loads, (out / log).read_text().splitlines())
    moving = ("time", "seconds", "tokens_per_second", "system/")
    return [{name: value for name, value in line.items() if not name.startswith(moving)} for line in found]


@pytest.fixture(scope="module")
def adapter(base: models.Base, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("adapter") / "out"
    return out, trained(base, dataset, out)


def test_dpo_begins_at_ln_2_from_where_the_answers_left_off(adapter: tuple[Path, Any]) -> None:
    out, facts = adapter
    then = facts["training"]["then"]
    first = lines(out)[0]
    assert first["step"] == 0
    assert first["eval_preference_loss"] == pytest.approx(0.6931, abs=0.02)  # bf16: packed otherwise, rounded otherwise
    assert then["preference_loss_best"] < 0.9 * then["preference_loss_first"]
    assert then["reward_accuracy"] > 0.6
    assert (then["train"], then["validation"]) == (60, 30)
    assert facts["training"]["loss_first"] > facts["training"]["loss_last"]
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("then", [DPO, {"objective": "kto", "learning_rate": 0.01, "max_steps": 5}])
def test_a_preview_counts_the_steps_of_the_second_phase(
    base: models.Base, dataset: Path, tmp_path: Path, then: Any
) -> None:
    settings = settings_with(then)
    ahead = run.preview(settings, shared_for(base, tmp_path / "work"), {"dataset": dataset})["forecast"]
    second = trained(base, dataset, tmp_path / "out", then, score_rows=0)["training"]["then"]
    assert ahead["then"]["steps"] == second["steps"]
    first = run.preview(settings_with(None), shared_for(base, tmp_path / "work"), {"dataset": dataset})["forecast"]
    assert ahead["steps"] == first["steps"]
    assert ahead["tokens"] == first["tokens"] + ahead["then"]["tokens"] + ahead["then"]["forward_tokens"] // 2
    judged = run.judged_of(settings, chat.load_tokenizer(base.path), dataset)
    assert judged is not None
    assert (judged.stranger_tokens > 0) == (then["objective"] == "kto")


def test_first_phase_is_the_one_without_a_second(
    adapter: tuple[Path, Any], base: models.Base, dataset: Path, tmp_path: Path
) -> None:
    trained(base, dataset, tmp_path / "alone", then=None)
    assert lines(tmp_path / "alone", "trainer_log.jsonl") == lines(adapter[0], "trainer_log.jsonl")
    assert not (tmp_path / "alone" / LOG).exists()


def test_kto_learns_from_single_opinions(base: models.Base, dataset: Path, tmp_path: Path) -> None:
    facts = trained(base, dataset, tmp_path / "kto", then=DPO | {"objective": "kto"})
    then = facts["training"]["then"]
    assert (then["train"], then["validation"]) == (120, 60)
    assert then["preference_loss_first"] == pytest.approx(0.5, abs=0.02)
    assert then["preference_loss_best"] < 0.9 * then["preference_loss_first"]
    assert then["reward_accuracy"] > 0.6


def test_killed_in_the_second_phase_goes_on_there_with_the_same_losses(
    adapter: tuple[Path, Any], base: models.Base, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    out.mkdir()
    program = (
        "import sys; from pathlib import Path; from tests.stages import test_then as t; from potstill import models\n"
        "base = models.resolve_base(sys.argv[1], Path(sys.argv[3]).parent)\n"
        "t.trained(base, Path(sys.argv[2]), Path(sys.argv[3]))\n"
    )
    words = [sys.executable, "-c", program, str(base.path), str(dataset), str(out)]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if any(out.glob("checkpoints/then/step-*/manifest.json")) and len(lines(out)) > 4:
            break
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    before = (out / "trainer_log.jsonl").read_text()
    trained(base, dataset, out)
    assert (out / "trainer_log.jsonl").read_text() == before  # the first phase was not trained again
    assert lines(out) == lines(adapter[0])


def test_no_preferences_are_refused_before_anything_is_trained(base: models.Base, tmp_path: Path) -> None:
    folder = dataset_of(tmp_path / "dataset", range(0), range(300, 310))
    with pytest.raises(NothingLearned, match=r"preferences.parquet has nothing to learn for dpo"):
        trained(base, folder, tmp_path / "out")
    assert not (tmp_path / "out" / "trainer_log.jsonl").exists()


def test_preferences_that_do_not_move_the_model_are_refused(base: models.Base, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingLearned, match=r"their loss on 30 held-out rows was 0\.69"):
        trained(base, dataset, tmp_path / "flat", then=DPO | {"learning_rate": 1e-9, "epochs": 1})


def test_a_second_phase_without_gain_leaves_the_first_ones_weights_and_says_so(
    base: models.Base,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = iter([0.3, 0.5, 0.8, 0.8, 0.7, 0.7])  # three evaluations of each phase
    monkeypatch.setattr(Scorer, "__call__", lambda self: Score(next(found), 6))
    facts = trained(base, dataset, tmp_path / "out")["training"]
    assert (facts["best_checkpoint_step"], facts["then"]["best_checkpoint_step"]) == (facts["steps"], 0)
    assert "the first phase's weights are kept" in capsys.readouterr().err


def log_lines(held: tuple[float, ...], trained_on: tuple[float, ...]) -> list[Any]:
    steps = [{"step": at, "preference_loss": loss, "grad_norm": 1.0} for at, loss in enumerate(trained_on, 1)]
    found = [{"step": at, "eval_preference_loss": loss, "eval_reward_accuracy": 0.75} for at, loss in enumerate(held)]
    return steps + found


def test_held_out_preferences_decide_where_they_are_enough() -> None:
    worse = log_lines((0.69, 0.70, 0.72), (0.69, 0.4, 0.1))
    with pytest.raises(NothingLearned, match="40 held-out rows"):
        refuse_nothing_preferred(worse, held=40, chosen=0)
    found = refuse_nothing_preferred(worse, held=4, chosen=2)
    assert found["preference_loss_on"] == "training rows"
    assert found["reward_accuracy_low"] < 0.75 < found["reward_accuracy_high"]


def test_few_steps_of_other_rows_are_no_proof_that_nothing_was_preferred(capsys: pytest.CaptureFixture[str]) -> None:
    """KTO: a step begins at half its answers' weights, whatever was learnt."""
    mixed = log_lines((), (0.625, 0.672, 0.622, 0.656))
    assert refuse_nothing_preferred(mixed, held=0, chosen=4)["preference_loss_on"] == "training rows"
    assert "too few steps to tell" in capsys.readouterr().err
    fell_on_four = log_lines((0.69, 0.66, 0.60), (0.6931, 0.7028))
    found = refuse_nothing_preferred(fell_on_four, held=4, chosen=2)
    assert (found["preference_loss_on"], found["preference_loss_best"]) == ("4 held-out rows", 0.60)
    refuse_nothing_preferred(log_lines((), (0.693,)), held=0, chosen=1)  # a single step tells nothing


def test_a_fall_of_the_likelihood_term_alone_is_no_preference_learnt() -> None:
    lines = [each | {"loss": 5.0 / (at + 1)} for at, each in enumerate(log_lines((), (0.693, 0.693, 0.693)))]
    with pytest.raises(NothingLearned, match="on training rows"):
        refuse_nothing_preferred(lines, held=0, chosen=0)


def test_settings_of_the_other_objective_are_refused() -> None:
    with pytest.raises(ValidationError, match="desirable_weight: of objective kto, found objective dpo"):
        Then(objective="dpo", desirable_weight=2.0)
    with pytest.raises(ValidationError, match="label_smoothing: of loss sigmoid"):
        Then(objective="dpo", loss="ipo", label_smoothing=0.1)
    with pytest.raises(ValidationError, match="give both or neither"):
        Then(objective="kto", desirable_weight=2.0)


def test_a_damaged_end_of_the_first_phase_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert take_finished(tmp_path, second) is None
    keep_finished(tmp_path, first, {"steps": 7})
    assert take_finished(tmp_path, second) == {"steps": 7}
    assert torch.equal(first.weight, second.weight)
    path = tmp_path / FINISHED / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with torch.no_grad():
        second.weight.zero_()
    assert take_finished(tmp_path, second) is None
    assert not second.weight.any()
    assert "is refused" in capsys.readouterr().err
