"""Training: what is learnt, what is refused, and that a killed run goes on as if nothing had happened."""

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
import torch

from potstill import chat, models
from potstill.contract import Contract
from potstill.errors import NothingLearned
from potstill.records import Example
from potstill.stage import Shared
from tests.stages.datasets import dataset_folder, write_rows
from tests.stages.tiny_llama import tiny_base
from training import run
from training.optimizer import MasterAdamW, learning_rate
from training.rows import IGNORED, Tokenised, tokenise
from training.scoring import Score, Scorer
from training.then import Judged
from training.watch import refuse_not_finite

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["bad", "good", "plain"]
WORDS = {"bad": ["awful", "broken", "late"], "good": ["great", "lovely", "quick"], "plain": ["a box", "blue", "ten"]}


def example(at: int, **changes: Any) -> Example:
    label = LABELS[at % 3]
    text = f"It was {WORDS[label][at // 3 % 3]}, order {at}."
    values: dict[str, Any] = {
        "id": f"e{at}", "conversation": f"c{at}", "messages": [{"role": "user", "content": text}], "full_messages": [],
        "answer": label, "teacher_answer": label, "teacher_text": label,
    }  # fmt: skip
    return Example(**(values | changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train, held = [example(at) for at in range(90)], [example(at) for at in range(300, 315)]
    return dataset_folder(tmp_path_factory.mktemp("dataset"), train, held)


def shared_for(base: models.Base, work: Path) -> Shared:
    return Shared("tiny", {"kind": "classification", "labels": LABELS}, str(base.path), work, "")


def settings_with(**changes: Any) -> run.Settings:
    values: dict[str, Any] = {
        "learning_rate": 0.01, "epochs": 4, "batch_tokens": 256, "window": 128, "evals": 2, "score_rows": 6,
        "chat_template": "base",
    }  # fmt: skip
    return run.Settings(**(values | changes))


def trained(base: models.Base, dataset: Path, out: Path, **changes: Any) -> Any:
    out.mkdir(parents=True, exist_ok=True)
    return run.main(settings_with(**changes), shared_for(base, out.parent), {"dataset": dataset}, out)


@pytest.fixture(scope="module")
def adapter(base: models.Base, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("adapter") / "out"
    return out, trained(base, dataset, out)


def losses(out: Path) -> list[float]:
    return [
        line["loss"] for line in map(json.loads, (out / "trainer_log.jsonl").read_text().splitlines()) if "loss" in line
    ]


def test_training_lowers_the_loss_and_leaves_a_whole_adapter_folder(adapter: tuple[Path, Any]) -> None:
    out, facts = adapter
    assert facts["training"]["loss_last"] < 0.6 * facts["training"]["loss_first"]
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert not (out / "checkpoints").exists()
    assert facts["training"]["steps"] == len(losses(out))


def test_contract_carries_the_template_and_ids_that_training_used(adapter: tuple[Path, Any]) -> None:
    out, _ = adapter
    contract = Contract.read(out)
    tokenizer = chat.load_tokenizer(out / "tokenizer")
    assert contract.chat_template == tokenizer.chat_template
    for golden in contract.golden:
        assert chat.golden(tokenizer, golden.messages, golden.tools).token_ids == golden.token_ids
        row, _ = chat.prompt_and_completion(tokenizer, golden.messages, golden.tools, "good")
        assert row == golden.token_ids


def test_rows_that_are_left_out_are_said_with_their_number_and_the_longest_names(
    base: models.Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [example(at) for at in range(12)]
    for at, words in ((3, 60), (5, 90), (8, 70), (9, 80)):
        train[at] = example(at, messages=[{"role": "user", "content": "late " * words}])
    held = [example(300, messages=[{"role": "user", "content": "late " * 99}]), example(301)]
    trained(base, dataset_folder(tmp_path / "dataset", train, held), tmp_path / "out", max_steps=2, window=64)
    told = capsys.readouterr().err
    assert "4 of 12 training rows are left out, longer than train.window 64 (longest: e5, e9, e8)" in told
    assert "1 of 2 validation rows are left out, longer than train.window 64 (longest: e300)" in told


def test_pairs_that_are_left_out_of_the_second_phase_are_said_by_reason(capsys: pytest.CaptureFixture[str]) -> None:
    judged = Judged(None, [], [], {"train": {"longer than the window": 7, "both answers are the same": 2}})  # type: ignore[arg-type]
    run.say_left_out(Tokenised([], []), Tokenised([], []), judged, 64)
    told = capsys.readouterr().err
    assert told.strip() == "train.then: left out of train: 7 longer than the window, 2 both answers are the same"
    run.say_left_out(Tokenised([], []), Tokenised([], []), None, 64)
    assert not capsys.readouterr().err


def test_same_seed_gives_the_same_losses(
    adapter: tuple[Path, Any], base: models.Base, dataset: Path, tmp_path: Path
) -> None:
    trained(base, dataset, tmp_path / "again")
    assert losses(tmp_path / "again") == losses(adapter[0])


def test_killed_run_resumes_with_the_same_losses(
    adapter: tuple[Path, Any], base: models.Base, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    out.mkdir()
    program = (
        "import sys; from pathlib import Path; from tests.stages import test_training as t; from training import run\n"
        "from potstill import models\n"
        "base = models.resolve_base(sys.argv[1], Path(sys.argv[3]).parent)\n"
        "t.trained(base, Path(sys.argv[2]), Path(sys.argv[3]))\n"
    )
    words = [sys.executable, "-c", program, str(base.path), str(dataset), str(out)]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    half = len(losses(adapter[0])) // 2 + 1
    while time.monotonic() < deadline and child.poll() is None:
        if (
            (out / "trainer_log.jsonl").is_file()
            and len(losses(out)) >= half
            and any(out.glob("checkpoints/step-*/manifest.json"))
        ):
            break
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    trained(base, dataset, out)
    assert losses(out) == losses(adapter[0])


def test_first_loss_is_the_token_mean_over_answers_alone(
    adapter: tuple[Path, Any], base: models.Base, dataset: Path
) -> None:
    """TRL's fused loss over our blocks, against plain cross-entropy over the same rows one by one."""
    tokenizer = chat.load_tokenizer(base.path)
    tokenised = tokenise(tokenizer, [example(at) for at in range(300, 315)], 128)
    model = models.load_float(base.path, dtype="float32").eval()
    total = count = 0.0
    for row in tokenised.rows:
        logits = model(input_ids=torch.tensor([row.token_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item()
        count += int((labels != IGNORED).sum())
    first = adapter[1]["training"]["eval_losses"][0]
    assert first == pytest.approx(total / count, rel=0.02)  # one computes in bf16, the other in float32


def test_packing_does_not_change_what_is_learnt(base: models.Base, dataset: Path, tmp_path: Path) -> None:
    """One step over all rows at once: packed and unpacked must give the same loss."""
    found = []
    for packing in (True, False):
        facts = trained(base, dataset, tmp_path / str(packing), packing=packing, batch_tokens=65536, epochs=2)
        found.append(facts["training"]["loss_first"])
    assert found[0] == pytest.approx(found[1], rel=0.005)


def test_nf4_trains_on_this_machine(base: models.Base, dataset: Path, tmp_path: Path) -> None:
    facts = trained(base, dataset, tmp_path / "nf4", quantization="nf4")
    assert facts["training"]["quantization"] == "nf4"
    assert facts["training"]["loss_last"] < 0.7 * facts["training"]["loss_first"]


def test_no_supervised_token_is_refused_before_the_model_is_loaded(
    base: models.Base, dataset: Path, tmp_path: Path
) -> None:
    long = write_rows(tmp_path / "long", [example(0, messages=[{"role": "user", "content": "word " * 400}])])
    with pytest.raises(NothingLearned, match=r"no supervised token: 0 rows fit into train.window 128 and 1 are longer"):
        trained(base, long, tmp_path / "out")
    assert not (tmp_path / "out" / "contract.json").exists()


def test_flat_loss_is_refused(base: models.Base, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingLearned, match="nothing learned: validation loss"):
        trained(base, dataset, tmp_path / "flat", learning_rate=1e-9, epochs=1)


def test_a_student_that_is_surely_worse_than_its_base_is_refused(
    base: models.Base, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([Score(0.6, 100, 0.5, 0.7), Score(0.4, 100, 0.3, 0.49), Score(0.4, 100, 0.3, 0.49)])
    monkeypatch.setattr(Scorer, "__call__", lambda self: next(found))
    with pytest.raises(NothingLearned, match=r"task score was 0\.600 before training and 0\.400 after it \(step "):
        trained(base, dataset, tmp_path / "worse")
    assert not (tmp_path / "worse" / "adapter").exists()


def test_a_student_that_a_few_rows_show_worse_than_its_base_is_kept_and_that_is_said(
    base: models.Base, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    found = iter([Score(0.6, 6, 0.3, 0.85), Score(0.5, 6, 0.2, 0.8), Score(0.5, 6, 0.2, 0.8)])
    monkeypatch.setattr(Scorer, "__call__", lambda self: next(found))
    facts = trained(base, dataset, tmp_path / "unsure")["training"]
    assert facts["best_checkpoint_step"] > 0  # never the untrained base's weights
    assert "0.600 before training and 0.500 after it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["loss", "grad_norm", "eval_loss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stops_the_run(name: str, value: float) -> None:
    with pytest.raises(NothingLearned, match="diverged"):
        refuse_not_finite({"step": 3, name: value})


def test_optimiser_is_adamw_in_float32_whatever_the_weights_compute_in() -> None:
    start = torch.randn(8, 8)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    low = torch.nn.Parameter(start.to(torch.bfloat16))
    mine = MasterAdamW([ours], lr=1e-3, weight_decay=0.1)
    halved = MasterAdamW([low], lr=1e-5)
    reference = torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.1)
    for seed in range(20):
        gradient = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))
        ours.grad, theirs.grad, low.grad = gradient.clone(), gradient.clone(), torch.ones(8, 8, dtype=torch.bfloat16)
        mine.gather(), halved.gather()
        mine.step(1e-3, 1e9), reference.step(), halved.step(1e-5, 1e9)
    assert torch.allclose(ours, theirs, atol=1e-7)
    moved = (start.to(torch.bfloat16).float().reshape(-1) - halved.state()["master"]).mean().item()
    assert moved == pytest.approx(20e-5, rel=0.01)  # updates that bf16 alone would have rounded away


def test_a_gradient_longer_than_the_limit_is_scaled_as_torch_scales_it() -> None:
    weight, theirs = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(4))
    ours, reference = MasterAdamW([weight], lr=0.1), torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.0)
    for size in (30.0, 0.2):
        weight.grad, theirs.grad = torch.arange(4.0) * size, torch.arange(4.0) * size
        ours.gather()
        norm = ours.step(0.1, 1.0)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_([theirs], 1.0)))
        reference.step()
    assert torch.allclose(weight, theirs, atol=1e-6)


def test_optimiser_state_comes_back_in_float32_and_moves_the_weights_with_it() -> None:
    weight = torch.nn.Parameter(torch.randn(4, dtype=torch.bfloat16))
    first = MasterAdamW([weight], lr=1e-3)
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        first.gather()
        first.step(1e-3, 1.0)
    other = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    second = MasterAdamW([other], lr=1e-3)
    second.load_state(first.state())
    assert torch.equal(other, weight)
    for each, parameter in ((first, weight), (second, other)):
        parameter.grad = torch.full_like(parameter, 0.5)
        each.gather()
        each.step(1e-3, 1.0)
    for name, value in first.state().items():
        assert second.state()[name].dtype == torch.float32
        assert torch.equal(second.state()[name], value)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
def test_the_rate_rises_to_its_peak_and_never_past_it(schedule: Any) -> None:
    rates = [learning_rate(at, 100, peak=1e-3, warmup_share=0.1, schedule=schedule) for at in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == rates[10] == 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == 1e-3 if schedule == "constant_with_warmup" else rates[-1] < 5e-5


def test_training_flushes_subnormal_numbers(
    base: models.Base, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    torch.set_flush_denormal(False)
    seen = []
    step = MasterAdamW.step

    def watched(optimizer: MasterAdamW, rate: float, limit: float) -> float:
        seen.append(float(torch.tensor([1e-40]) * 1))
        return step(optimizer, rate, limit)

    monkeypatch.setattr(MasterAdamW, "step", watched)
    trained(base, dataset, tmp_path, max_steps=1)
    assert float(torch.tensor([1e-40], dtype=torch.float64)) > 0
    assert seen == [0.0]
