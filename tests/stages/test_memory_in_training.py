"""Recomputed activations, and the probe: real steps of the train stage."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from potstill import chat, models
from potstill.errors import PotstillError
from potstill.records import Json
from tests.stages.datasets import dataset_folder
from tests.stages.test_training import example, settings_with, shared_for
from tests.stages.tiny_llama import tiny_base
from training.fused import WORTH_TOKENS, fuse
from training.loop import gradient
from training.model import student
from training.objectives.answers import Answers
from training.packing import Unit
from training.probe import STEPS, few_rows, probe, shortened, train_few
from training.rows import Row, Tokenised, tokenise


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train, held = [example(at) for at in range(60)], [example(at) for at in range(300, 306)]
    return dataset_folder(tmp_path_factory.mktemp("dataset"), train, held)


UNLIKE = (20, 9, 300, 20, 31)  # tokens: several buckets of attention, and the library's kernel for the long one


@pytest.mark.parametrize("kind", ["lean", "plain", "fused"])
def test_recomputing_activations_changes_no_gradient(
    base: models.Base, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.fused._compiled", lambda function: function)
    lean = kind != "plain"
    rows = [Row(str(length), [(7 * at + length) % 300 for at in range(length)], ((1, length),)) for length in UNLIKE]
    units = [Unit(f"{at}", (row,)) for at, row in enumerate(rows)]
    found = []
    for again in (False, True):
        model = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.0, seed=0, lean=lean).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros would leave nothing to compare
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
        if kind == "fused":
            assert fuse(model.get_base_model()) > 0
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        calls: list[int] = []
        norm = model.get_base_model().get_decoder().layers[0].input_layernorm
        norm.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss, _ = gradient(model, Answers(units), units, 4096)
        assert len(calls) == (2 if again else 1)
        found.append((loss, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (kept_loss, kept), (again_loss, again_grads) = found
    assert kept_loss == again_loss
    for name, grad in kept.items():
        assert grad is not None
        assert torch.equal(grad, again_grads[name]), name
    assert any(float(grad.abs().max()) > 0 for grad in kept.values() if grad is not None)


def test_a_probe_runs_real_steps_and_leaves_nothing(base: models.Base, dataset: Path, tmp_path: Path) -> None:
    shared = shared_for(base, tmp_path / "work" / "tiny")
    settings = settings_with(machine_usd_per_hour=2.0)
    found = probe(settings, shared, {"dataset": dataset}, tokens=100_000)
    assert found["steps"] == STEPS
    assert found["hours"] == pytest.approx(100_000 / found["tokens_per_second"] / 3600, rel=0.01)
    assert found["usd"] == pytest.approx(2.0 * found["hours"], abs=2e-4)  # both are rounded
    assert 200 * 2**20 < found["peak_bytes"] < 4 * 2**30
    assert not (tmp_path / "work" / "tiny").exists()


def test_a_probe_asks_a_teacher_about_the_rows_of_its_steps_and_runs_one_phase(
    base: models.Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dataset has no preferences: a second phase that ran would fail."""
    train, held = [example(at) for at in range(600)], [example(at) for at in range(1000, 1200)]
    data = dataset_folder(tmp_path / "dataset", train, held)
    teacher = {"teacher": str(base.path), "prompt": "student"}
    settings = settings_with(objective="logits", distil=teacher, then={"objective": "dpo"}, micro_tokens=512)
    shared = shared_for(base, tmp_path / "work")
    out = tmp_path / "out"
    out.mkdir()
    asked = {
        "settings": settings.model_dump(mode="json", exclude_unset=True),
        "shared": asdict(shared) | {"work_dir": str(shared.work_dir)},
        "dataset": str(data), "out": str(out),
    }  # fmt: skip
    assert train_few(asked)["tokens_per_second"] > 0
    told = re.search(r"asking the teacher about (\d+) rows", capsys.readouterr().err)
    assert told is not None
    assert int(told[1]) < 100
    assert not (out / "then_log.jsonl").exists()


@pytest.mark.parametrize(
    ("epochs", "then", "compiled"), [(2.0, None, True), (1.0, {"objective": "dpo"}, False)], ids=["long", "short"]
)
def test_a_probe_compiles_loops_where_the_whole_training_does(
    epochs: float, then: Json | None, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decides are the tokens of the first phase, as in training; a second one adds nothing."""
    monkeypatch.setattr("training.fused.can_compile", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    rows = Tokenised([Row(f"r{at}", [1] * 100, ((2, 100),)) for at in range(WORTH_TOKENS // 200)], [])

    def probed(**changes: object) -> object:
        whole = settings_with(epochs=epochs, then=then, **changes)
        return few_rows(whole, type(whole).model_validate(shortened(whole)), rows, rows)[0].compile

    assert probed() is compiled
    assert probed(compile=False) is False
    assert probed(max_steps=WORTH_TOKENS // 256 + 1) is True
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert probed() == "auto"


def test_a_probe_does_not_judge_the_usable_share_of_a_few_rows() -> None:
    settings = settings_with(objective="logits", distil={"least_usable": 0.9, "share": 0.7})
    short = type(settings).model_validate(shortened(settings))
    assert (short.distil.least_usable, short.distil.share) == (0.0, 0.7)


def test_a_probe_takes_the_rows_of_its_steps_and_a_micro_batch_to_evaluate(base: models.Base) -> None:
    tokenizer = chat.load_tokenizer(base.path)
    rows, held = (tokenise(tokenizer, [example(at) for at in range(count)], 128) for count in (600, 200))
    settings = settings_with(micro_tokens=512)
    _, few, seen = few_rows(settings, settings, rows, held)
    assert STEPS * 256 * 0.8 < few.tokens <= STEPS * 256
    assert 512 - 128 < seen.tokens <= 512
    _, whole, all_held = few_rows(settings, settings, few, Tokenised(held.rows[:3], []))
    assert whole.rows == few.rows
    assert all_held.rows == held.rows[:3]


def test_a_probe_that_fails_shows_the_last_lines_of_its_process(dataset: Path, tmp_path: Path) -> None:
    nowhere = models.Base(str(tmp_path / "nothing"), tmp_path / "nothing", "")
    with pytest.raises(PotstillError, match="the probe ended with code"):
        probe(settings_with(), shared_for(nowhere, tmp_path / "work"), {"dataset": dataset}, tokens=1)
