"""A training of milliseconds on which every fault of a disk can be tried, and a disk that fails when asked.

The model has dropout, so that its random state matters, and its score is drawn from the bits of its weights, so that
the best step is any step and differs when one bit does.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from potstill.records import Json
from potstill.tasks.base import Metric
from training.loop import Plan, train
from training.objectives.answers import Answers
from training.packing import Stream, Unit
from training.rows import Row
from training.scoring import Score
from training.watch import Watch

PLAN = Plan(
    learning_rate=0.02, schedule="cosine", warmup_share=0.1, weight_decay=0.01, max_grad_norm=1.0, micro_tokens=40,
    evals=4, patience=None, checkpoint_minutes=1e6, checkpoint_steps=1,
)  # fmt: skip
EPOCHS = 2


def toy_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=True,
        )
    )  # fmt: skip

    def drop(module: Any, given: Any, made: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(made, 0.1, module.training)

    model.get_input_embeddings().register_forward_hook(drop)
    return model


def toy_units(first: int, count: int) -> list[Unit]:
    """Rows of 4 to 12 tokens that count upwards from their number."""
    units = []
    for at in range(first, first + count):
        size = 4 + at * 5 % 9
        row = Row(f"r{at}", [(at + step) % 32 for step in range(size)], ((2, size),), 1.0 + at % 2)
        units.append(Unit(f"u{at}", (row,)))
    return units


@dataclass(frozen=True)
class Outcome:
    """What a run has learnt from what, and what it ends with; equal only where every bit is."""

    steps: tuple[tuple[Any, ...], ...]
    evaluations: tuple[tuple[Any, ...], ...]
    weights: str
    best_step: int


METRIC = Metric("accuracy", {"hit": 1})


def scored(value: float, rows: int) -> Score:
    """About this share of the rows right: the same ones whenever as many are."""
    parts = [{"hit": float(at < round(value * rows))} for at in range(rows)]
    return Score(value, rows, metric=METRIC, parts=parts, conversations=tuple(str(at) for at in range(rows)))


def weights_digest(model: Any) -> str:
    digest = hashlib.sha256()
    for _, each in sorted(model.named_parameters()):
        digest.update(each.detach().numpy().tobytes())
    return digest.hexdigest()


def toy_run(
    folder: Path,
    *,
    units: int = 24,
    seed: int = 3,
    at_score: Callable[[int], None] = lambda count: None,
    **changes: Any,
) -> Outcome:
    """Train in `folder` from where it stands to the end; `at_score` is called with the number of each evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    model = toy_model()
    stream = Stream(toy_units(0, units), seed=seed, step_tokens=48, epochs=EPOCHS)
    log, counted = folder / "trainer_log.jsonl", [0]

    def score() -> Score:
        counted[0] += 1
        at_score(counted[0])
        return scored(int(weights_digest(model)[:4], 16) / 65535, 200)

    done = train(
        model, Answers(stream.units), stream, toy_units(40, 5), replace(PLAN, **changes), Watch(log, stream.steps),
        folder / "checkpoints", score,
    )  # fmt: skip
    steps, evaluations = read_log(log)
    return Outcome(tuple(steps), tuple(evaluations), weights_digest(model), done.best_step)


def read_log(log: Path) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Steps and evaluations of a log, as they stand in it, without what depends on the clock."""
    lines: list[Json] = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [(e["step"], e["rows"], e["loss"], e["grad_norm"], e["learning_rate"]) for e in lines if "loss" in e]
    return steps, [(e["step"], e["eval_loss"], e.get("eval_score")) for e in lines if "eval_loss" in e]


def stopped_at(folder: Path, step: int, number: signal.Signals = signal.SIGTERM, **changes: Any) -> Path:
    """A run in `folder` that was asked to end while it was at this step (from 1)."""

    class Asked(Watch):
        def begin(self, at: int) -> None:
            super().begin(at)
            if at == step - 1:
                os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "Watch", Asked)
        with pytest.raises(KeyboardInterrupt) as stopped:
            toy_run(folder, **changes)
    assert stopped.value.args == (number,)
    return folder


class Killed(BaseException):
    """The process ended here, as far as its disk can tell."""


Fault = Literal["refuse", "short", "kill", "kill-half"]
OPERATIONS = ("write", "fsync", "rename")


class FaultyDisk:
    """Stands for the module `os` in training.checkpoints: counts operations, and fails the `at`-th of a kind.

    `refuse` raises ENOSPC for it and the `lasting` after it, having written half. `short` takes a third of the bytes,
    each time. `kill` copies the folder as it stands before the operation (`kill-half`: after half of a write) to
    `snapshot` and raises Killed: no clean-up reaches the copy.
    """

    def __init__(
        self, folder: Path, operation: str = "", at: int = 0, fault: Fault = "refuse", lasting: int = 0
    ) -> None:
        self.folder, self.operation, self.at, self.fault, self.lasting = folder, operation, at, fault, lasting
        self.snapshot = folder.with_name(folder.name + "-as-killed")
        self.counts = dict.fromkeys(OPERATIONS, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _failing(self, operation: str, half: Callable[[], object] = lambda: None) -> None:
        self.counts[operation] += 1
        if operation != self.operation or not self.at <= self.counts[operation] <= self.at + self.lasting:
            return
        if self.fault == "refuse":
            half()
            raise OSError(errno.ENOSPC, f"no space for {operation} {self.counts[operation]}")
        if self.fault in ("kill", "kill-half"):
            if self.fault == "kill-half":
                half()
            shutil.copytree(self.folder, self.snapshot)
            raise Killed

    def write(self, handle: int, data: memoryview) -> int:
        self._failing("write", lambda: os.write(handle, data[: len(data) // 2]))
        if self.fault == "short" and len(data) > 1:
            return os.write(handle, data[: max(1, len(data) // 3)])
        return os.write(handle, data)

    def fsync(self, handle: int) -> None:
        self._failing("fsync")
        os.fsync(handle)

    def rename(self, source: Path, target: Path) -> None:
        self._failing("rename")
        os.rename(source, target)
