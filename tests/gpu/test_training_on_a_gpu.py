"""QLoRA on a CUDA device; run by `make test-gpu`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.datasets import dataset_folder
from tests.stages.test_training import example, losses, trained
from tests.stages.tiny_llama import tiny_base
from training import loop

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts, for the test of train.deterministic
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


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_deterministic_run_goes_on_with_the_same_losses_to_the_bit(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, base = dataset_folder(tmp_path / "dataset", TRAIN, HELD), tiny_base(tmp_path / "base")
    asked: dict[str, Any] = {
        "quantization": quantization, "deterministic": True, "checkpoint_steps": 1, "lora": {"dropout": 0.1},
    }  # fmt: skip
    trained(base, dataset, tmp_path / "whole", **asked)
    learn, steps = loop.learn, iter(range(10_000))

    def ended(*args: Any) -> None:
        if next(steps) == 20:
            raise KeyboardInterrupt
        learn(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learn", ended)
        with pytest.raises(KeyboardInterrupt):
            trained(base, dataset, tmp_path / "stopped", **asked)
    assert 0 < len(losses(tmp_path / "stopped")) < len(losses(tmp_path / "whole"))
    trained(base, dataset, tmp_path / "stopped", **asked)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
