"""Several processes make the steps that one would make: on a CPU, over gloo, with the tiny model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill import models
from potstill.errors import PotstillError
from potstill.records import Json
from tests.stages.processes_child import units
from tests.stages.test_then import dataset_of
from tests.stages.tiny_llama import tiny_base
from tests.stages.toy_training import toy_model
from training import fit, processes
from training.model import student
from training.packing import Stream, Unit
from training.rows import Row

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def run(base: models.Base, out: Path, count: int, **changes: Any) -> list[Json]:
    """The log's lines of a training by `count` processes."""
    out.mkdir(exist_ok=True)
    job = {"base": str(base.path), "out": str(out), "quantization": "none", "shard": False, "steps": 12} | changes
    start(count, "processes_child", job, out)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def start(count: int, child: str, job: Json, out: Path) -> None:
    """Run a module of this folder in `count` processes, as torchrun would, until all have ended well."""
    path = out.parent / f"{out.name}.json"
    path.write_text(json.dumps(job))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
    }  # fmt: skip
    children = [
        subprocess.Popen(
            [sys.executable, "-m", f"tests.stages.{child}", str(path)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    said = [child.communicate(timeout=400)[1] for child in children]
    assert [child.returncode for child in children] == [0] * count, "\n".join(said)


def series(lines: list[Json], name: str) -> list[Any]:
    return [line[name] for line in lines if name in line]


@pytest.fixture(scope="module")
def alone(base: models.Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Json]]:
    out = tmp_path_factory.mktemp("alone") / "out"
    return out, run(base, out, 1)


def same(found: list[Json], wanted: list[Json], rel: float) -> None:
    assert series(found, "rows") == series(wanted, "rows")
    for name in ("loss", "grad_norm", "eval_loss", "token_accuracy", "eval_token_accuracy"):
        assert series(found, name) == pytest.approx(series(wanted, name), rel=rel), name


@pytest.mark.parametrize("count", [2, 3])
def test_processes_make_the_steps_of_one(
    count: int, base: models.Base, alone: tuple[Path, list[Json]], tmp_path: Path
) -> None:
    found = run(base, tmp_path, count)
    same(found, alone[1], rel=1e-5)
    trained = [torch.load(tmp_path / f"process-{rank}.pt")["trained"] for rank in range(count)]
    assert all(torch.equal(each, trained[0]) for each in trained)
    wanted = torch.load(alone[0] / "process-0.pt")["trained"]
    torch.testing.assert_close(trained[0], wanted, rtol=1e-3, atol=1e-5)


def test_sharded_weights_make_the_same_steps_and_stand_in_one_process_each(
    base: models.Base, alone: tuple[Path, list[Json]], tmp_path: Path
) -> None:
    same(run(base, tmp_path, 2, shard=True), alone[1], rel=1e-5)
    whole = torch.load(alone[0] / "process-0.pt")["local"]
    parts = [torch.load(tmp_path / f"process-{rank}.pt")["local"] for rank in range(2)]
    assert sum(parts) == whole
    assert max(parts) <= 0.51 * whole


def test_sharded_nf4_weights_make_the_same_steps(base: models.Base, tmp_path: Path) -> None:
    wanted = run(base, tmp_path / "alone", 1, quantization="nf4")
    found = run(base, tmp_path / "sharded", 2, quantization="nf4", shard=True)
    assert series(found, "rows") == series(wanted, "rows")
    for name in ("loss", "grad_norm", "eval_loss"):
        assert series(found, name) == pytest.approx(series(wanted, name), rel=0.05), name  # bf16
    whole = torch.load(tmp_path / "alone" / "process-0.pt")["local"]
    parts = [torch.load(tmp_path / "sharded" / f"process-{rank}.pt")["local"] for rank in range(2)]
    assert max(parts) <= 0.52 * whole


def test_a_run_goes_on_with_another_number_of_processes(
    base: models.Base, alone: tuple[Path, list[Json]], tmp_path: Path
) -> None:
    run(base, tmp_path, 2, stop_at=5)
    same(run(base, tmp_path, 1), alone[1], rel=1e-5)


def test_processes_that_drop_out_go_on_with_the_same_losses_to_the_bit(base: models.Base, tmp_path: Path) -> None:
    whole = run(base, tmp_path / "whole", 2, dropout=0.2)
    plain = run(base, tmp_path / "plain", 2)
    assert series(whole, "loss") != series(plain, "loss"), "nothing was dropped"
    run(base, tmp_path / "stopped", 2, dropout=0.2, stop_at=5)
    resumed = run(base, tmp_path / "stopped", 2, dropout=0.2)
    for name in ("rows", "loss", "grad_norm", "eval_loss"):
        assert series(resumed, name) == series(whole, name), name


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_second_phase_by_two_processes_learns_what_one_learns(
    objective: str, base: models.Base, tmp_path: Path
) -> None:
    dataset = dataset_of(tmp_path / "dataset", range(60), range(300, 330))
    settings = {
        "learning_rate": 0.005, "epochs": 1, "batch_tokens": 256, "window": 128, "evals": 2, "score_rows": 6,
        "chat_template": "base", "then": {"objective": objective, "learning_rate": 0.01, "epochs": 2},
    }  # fmt: skip
    logs = []
    for count in (1, 2):
        out = tmp_path / f"by-{count}"
        out.mkdir()
        job = {"base": str(base.path), "dataset": str(dataset), "out": str(out), "settings": settings}
        start(count, "then_child", job, out)
        assert json.loads((out / "facts.json").read_text())["training"]["processes"] == count
        logs.append([json.loads(line) for line in (out / "then_log.jsonl").read_text().splitlines()])
        assert (out / "then.svg").is_file()
        assert not (out / "checkpoints").exists()
    alone, together = logs
    assert series(together, "rows") == series(alone, "rows")
    assert series(together, "eval_preference_loss")[-1] < 0.95 * series(together, "eval_preference_loss")[0]
    for name in ("preference_loss", "grad_norm", "eval_preference_loss"):
        assert series(together, name)[:12] == pytest.approx(series(alone, name)[:12], rel=1e-3), name
        assert series(together, name) == pytest.approx(series(alone, name), rel=0.1), name  # rounding adds up


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 9))
def test_every_unit_is_in_one_share_and_shares_are_balanced(lengths: list[int], among: int) -> None:
    made = [Unit(str(at), (Row(str(at), tuple(range(n)), ((1, n),)),)) for at, n in enumerate(lengths)]
    parts = processes.shares(made, among)
    assert len(parts) == among
    assert sorted(unit.id for part in parts for unit in part) == sorted(unit.id for unit in made)
    tokens = [sum(unit.tokens for unit in part) for part in parts]
    assert max(tokens) - min(tokens) <= max(lengths)
    for part in parts:
        assert [int(unit.id) for unit in part] == sorted(int(unit.id) for unit in part)


def test_alone_every_unit_is_computed_once_in_order() -> None:
    made = units(20, 0)
    found = list(processes.rounds(made, 100))
    assert all(counts for _, counts in found)
    assert [unit for micro, _ in found for unit in micro] == made


def test_the_share_of_the_matrix_product_is_of_all_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A step's tokens are those of all processes: over one device's product, four would use 400 %."""
    stream = Stream(units(40, 0), seed=3, step_tokens=64, max_steps=3)
    monkeypatch.setattr(fit, "matrix_product_flops", lambda device: 1e9)
    monkeypatch.setattr(processes, "count", lambda: 4)
    watch = fit.watch_of(toy_model(), stream, tmp_path / "log.jsonl", tmp_path / "plot.svg", None)
    watch.tokens = watch.computed_tokens = 1000
    watch.seconds, watch.flops = 1.0, (2e6, 0.0)
    assert watch.share_of_peak() == pytest.approx(0.5)


def test_a_base_to_be_sharded_comes_to_the_card_a_layer_at_a_time(
    base: models.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for FSDP counts what it brings to a card that is not there: anything else that goes there fails."""
    from torch import distributed
    from torch.distributed import device_mesh, fsdp

    made: Any = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.0, seed=1, shardable=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_card, peak, calls = 0, 0, list[str]()

    def brought(module: Any, mesh: Any, ignored_params: set[Any]) -> None:
        nonlocal on_card, peak
        frozen = [each for each in module.parameters() if each not in ignored_params and id(each) not in spread]
        assert all(each.device.type == "cpu" for each in frozen)
        size = sum(each.numel() * each.element_size() for each in frozen)
        peak, on_card = max(peak, on_card + size), on_card + size // 8
        spread.update(id(each) for each in frozen)
        calls.append(type(module).__name__)

    spread = set[int]()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(device_mesh, "init_device_mesh", lambda device, shape: calls.append(device))
    monkeypatch.setattr(fsdp, "fully_shard", brought)
    monkeypatch.setattr(processes, "bring_the_rest", lambda model, to: calls.append(f"the rest to {to}"))
    assert processes.shard(made) is made
    assert calls == ["cuda", "LlamaDecoderLayer", "LlamaDecoderLayer", "LlamaModel", "the rest to cuda"]
    layer = sum(
        each.numel() * 2
        for each in made.get_base_model().get_decoder().layers[0].parameters()
        if not each.requires_grad
    )
    assert 0 < peak <= layer + 2 * layer // 8


def test_loading_for_shards_leaves_the_card_alone(base: models.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert next(models.load_float(base.path, on_cpu=True).parameters()).device.type == "cpu"
    with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
        models.load_float(base.path)


def test_what_is_not_spread_follows_as_the_same_parameters(base: models.Base) -> None:
    made: Any = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.0, seed=1, shardable=True)
    before = dict(made.named_parameters())
    processes.bring_the_rest(made, torch.float64)  # another type stands for another device
    assert {name: id(each) for name, each in made.named_parameters()} == {n: id(each) for n, each in before.items()}
    assert {each.dtype for each in [*made.parameters(), *made.buffers()]} == {torch.float64}
    inner = made.get_base_model()
    assert inner.get_output_embeddings().weight is inner.get_input_embeddings().weight


def test_sharding_alone_is_refused(base: models.Base) -> None:
    with pytest.raises(PotstillError, match="torchrun"):
        processes.shard(models.load_float(base.path))
