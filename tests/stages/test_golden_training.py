"""What a fixed run learns, step by step, against figures kept beside this file.

A refactor that changes what is learnt (the loss, its normaliser, masks, weights, packing order, optimiser, schedule,
initial adapter) fails here; one that changes rounding does not. When a change is meant, remake the figures with

    python -m tests.stages.test_golden_training

and say in the commit why they moved.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from potstill import models
from potstill.records import Json
from tests.stages.datasets import dataset_folder
from tests.stages.test_training import example, trained
from tests.stages.tiny_llama import tiny_base

GOLDEN = Path(__file__).with_name("golden_training.json")
CLOSE = 1e-3  # relative: float32 on another processor, or with other threads, differs by less


def run_in(work: Path, **changes: Any) -> Json:
    """Rows, losses, gradient norms and held-out losses of the fixed run, in float32, without dropout.

    Dropout is left out since its random numbers are not the same on every kind of processor.
    """
    rows = [example(at, weight=1.0 + at % 3) for at in range(90)]
    dataset = dataset_folder(work / "dataset", rows, [example(at) for at in range(300, 315)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load_float", functools.partial(models.load_float, dtype="float32"))
        trained(tiny_base(work / "base"), dataset, work / "out", **({"epochs": 2, "score_rows": 0} | changes))
    lines = [json.loads(line) for line in (work / "out" / "trainer_log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    return {
        "rows": [line["rows"] for line in steps],
        "losses": [round(line["loss"], 6) for line in steps],
        "grad_norms": [round(line["grad_norm"], 6) for line in steps],
        "learning_rates": [round(line["learning_rate"], 9) for line in steps],
        "eval_losses": [round(line["eval_loss"], 6) for line in lines if "eval_loss" in line],
    }


def test_the_fixed_run_learns_what_it_has_always_learnt(tmp_path: Path) -> None:
    golden, found = json.loads(GOLDEN.read_text()), run_in(tmp_path)
    assert found["rows"] == golden["rows"], "other rows, or in another order"
    assert found["learning_rates"] == pytest.approx(golden["learning_rates"], rel=1e-6)
    for name in ("losses", "eval_losses", "grad_norms"):
        assert found[name] == pytest.approx(golden[name], rel=CLOSE), name


@pytest.mark.parametrize("change", [{"learning_rate": 0.0105}, {"packing": False}])
def test_the_figures_tell_a_small_change_from_none(tmp_path: Path, change: dict[str, Any]) -> None:
    """A rate five per cent higher is seen; what only changes rounding, such as unpacked rows, is not."""
    golden, found = json.loads(GOLDEN.read_text()), run_in(tmp_path, **change)
    same = found["losses"] == pytest.approx(golden["losses"], rel=CLOSE)
    assert same == ("packing" in change)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(run_in(Path(folder)), indent=1) + "\n")
