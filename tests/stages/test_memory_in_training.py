"""Recomputed activations, and the probe: real steps of the train stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potstill import chat, models
from potstill.errors import PotstillError
from tests.stages.datasets import dataset_folder
from tests.stages.test_training import example, settings_with, shared_for
from tests.stages.tiny_llama import tiny_base
from training.loop import gradient
from training.model import student
from training.objectives.answers import Answers
from training.packing import Unit
from training.probe import STEPS, probe
from training.rows import tokenise


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train, held = [example(at) for at in range(60)], [example(at) for at in range(300, 306)]
    return dataset_folder(tmp_path_factory.mktemp("dataset"), train, held)


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "plain"])
def test_recomputing_activations_changes_no_gradient(base: models.Base, lean: bool) -> None:
    rows = tokenise(chat.load_tokenizer(base.path), [example(at) for at in range(12)], 128).rows
    units = [Unit(row.id, (row,)) for row in rows]
    found = []
    for again in (False, True):
        model = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.0, seed=0, lean=lean).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros would leave nothing to compare
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
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
    found = probe(settings, shared, {"dataset": dataset}, tokens=1_000_000)
    assert found["steps"] == STEPS
    assert found["hours"] == pytest.approx(1_000_000 / found["tokens_per_second"] / 3600, rel=0.01)
    assert found["usd"] == pytest.approx(2.0 * found["hours"], rel=0.01)
    assert 200 * 2**20 < found["peak_bytes"] < 4 * 2**30
    assert not (tmp_path / "work" / "tiny").exists()


def test_a_probe_that_fails_shows_the_last_lines_of_its_process(dataset: Path, tmp_path: Path) -> None:
    nowhere = models.Base(str(tmp_path / "nothing"), tmp_path / "nothing", "")
    with pytest.raises(PotstillError, match="the probe ended with code"):
        probe(settings_with(), shared_for(nowhere, tmp_path / "work"), {"dataset": dataset}, tokens=1)
