"""QLoRA on a CUDA device; run by `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.stages.datasets import dataset_folder
from tests.stages.test_training import example, trained
from tests.stages.tiny_llama import tiny_base

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
TRAIN, HELD = [example(at) for at in range(90)], [example(at) for at in range(300, 315)]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_training_on_a_gpu_lowers_the_loss(quantization: str, tmp_path: Path) -> None:
    dataset = dataset_folder(tmp_path / "dataset", TRAIN, HELD)
    made = trained(tiny_base(tmp_path / "base"), dataset, tmp_path / "out", quantization=quantization)
    assert made["training"]["quantization"] == quantization
    assert made["training"]["loss_last"] < 0.7 * made["training"]["loss_first"]


def test_recomputed_activations_on_a_gpu_give_the_same_first_loss(tmp_path: Path) -> None:
    dataset = dataset_folder(tmp_path / "dataset", TRAIN, HELD)
    base = tiny_base(tmp_path / "base")
    kept, again = (
        trained(base, dataset, tmp_path / each, quantization="none", activation_checkpointing=each)["training"]
        for each in ("off", "on")
    )
    assert (kept["checkpointing"], again["checkpointing"]) == (False, True)
    assert again["loss_first"] == pytest.approx(kept["loss_first"], rel=1e-3)
