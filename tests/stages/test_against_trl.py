"""Ours against TRL's SFTTrainer: the same rows in the same order give the same losses, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.train import ours, with_trl
from benchmarks.train.job import Job, Steps
from benchmarks.train.rows import like_banking77, write_rows
from tests.stages.tiny_llama import VOCABULARY, tiny_base

STEPS, ROWS_A_STEP = 12, 8


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Steps]:
    folder: Path = tmp_path_factory.mktemp("both")
    rows = like_banking77(2 * ROWS_A_STEP, VOCABULARY, seed=0)
    write_rows(rows, folder / "rows.json")
    batches = [list(range(at % 2 * ROWS_A_STEP, (at % 2 + 1) * ROWS_A_STEP)) for at in range(STEPS)]
    values = {
        "base": str(tiny_base(folder / "base").path), "rows": str(folder / "rows.json"), "steps": STEPS,
        "batches": batches, "adapter": str(folder / "adapter.safetensors"), "dtype": "float32", "learning_rate": 0.005,
    }  # fmt: skip
    theirs = with_trl.train(Job("trl-same-order", **values), rows)
    return {"TRL": theirs, "ours": ours.train(Job("ours", **values), rows)}


def test_every_step_has_the_loss_that_trl_has(both: dict[str, Steps]) -> None:
    assert len(both["TRL"].losses) == STEPS
    assert both["ours"].losses == pytest.approx(both["TRL"].losses, rel=1e-4)


def test_every_step_has_the_gradient_norm_that_trl_has(both: dict[str, Steps]) -> None:
    assert both["ours"].gradient_norms == pytest.approx(both["TRL"].gradient_norms, rel=1e-3)
    assert min(both["ours"].gradient_norms) > 0


def test_the_curves_are_of_a_model_that_learns(both: dict[str, Steps]) -> None:
    """Losses of a model that stands still would agree as well."""
    first, last = both["TRL"].losses[0], both["TRL"].losses[-1]
    assert last < 0.9 * first
