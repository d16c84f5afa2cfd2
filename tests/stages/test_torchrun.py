"""`torchrun ... potstill train`: one process does the recipe, the others take part in training and end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export import merge
from tests.stages.test_whole_way import RECIPE, exchange
from tests.stages.tiny_llama import tiny_base

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    base = tiny_base(folder / "base")
    (folder / "log.jsonl").write_text("".join(json.dumps(exchange(at)[0]) + "\n" for at in range(120)))
    (folder / "gold.jsonl").write_text("".join(json.dumps(exchange(at)[1]) + "\n" for at in range(120)))
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base.path))
    return folder


def potstill(place: Path, *words: str, count: int = 2) -> Any:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [*launcher, "-m", "potstill.cli", "train", str(place / "recipe.yaml"), "--no-track", "--json", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=500)
    return done.returncode, done.stdout, done.stderr


def test_the_recipe_is_done_once_and_every_process_ends(place: Path) -> None:
    code, out, said = potstill(place, "train.epochs=6")
    assert code == 0, said
    (line,) = out.splitlines()  # only the first process reports
    outcome = json.loads(line)
    folder = Path(outcome["adapter"]["path"])
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    assert facts["training"]["processes"] == 2
    assert facts["training"]["loss_last"] < 0.8 * facts["training"]["loss_first"]
    assert not (folder / "checkpoints").exists()
    assert (folder / "training.svg").is_file()
    assert said.count("distill: done") == 1
    code, out, said = potstill(place, "train.epochs=6")
    assert code == 0, said
    assert json.loads(out)["adapter"]["skipped"]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_sharded_base_is_trained_scored_and_saved(quantization: str, place: Path) -> None:
    code, out, said = potstill(place, "train.epochs=6", "train.shard=full", f"train.quantization={quantization}")
    assert code == 0, said
    folder = Path(json.loads(out)["adapter"]["path"])
    facts = json.loads((folder / "manifest.json").read_text())["facts"]["training"]
    assert facts["loss_last"] < 0.8 * facts["loss_first"]
    assert facts["scores"]
    deltas = merge.read_adapter(folder / "adapter")
    assert len(deltas) == 2 * 7  # every linear layer of both decoder layers, whole
    assert all(each.up.abs().max() > 0 for each in deltas.values())


def test_a_fault_in_the_first_process_ends_all(place: Path) -> None:
    code, _, said = potstill(place, "train.window=32", "train.learning_rate=1.0e-9", "train.epochs=1")
    assert code != 0
    assert "potstill:" in said
