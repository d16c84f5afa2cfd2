"""One candidate's run in a process of its own: what it is asked, what it leaves behind, what it cost."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.measure import Cost, measured
from benchmarks.record import ROOT

TIMEOUT_S = 900
LOOK_S = 2.0  # how often the process is looked at while it trains: each look holds it up


@dataclass(frozen=True)
class Job:
    """What a candidate does: `steps` optimiser steps over the rows, of which the first `warmup` are not timed.

    With `batches`, step n takes exactly the rows `batches[n]`, and the adapter starts from the weights in `adapter`
    (the first to come writes them), so that candidates can be laid over each other. Without, each composes its own.
    `compiled`: our side works by compiled loops, as it does by itself where a training is long. `shared`: it computes
    what rows of a micro-batch have in common at their beginnings once, as it always does.
    """

    candidate: str
    base: str
    rows: str
    steps: int
    warmup: int = 2
    batches: list[list[int]] | None = None
    adapter: str | None = None
    learning_rate: float = 5e-4
    rank: int = 16
    alpha: int = 32
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    quantization: Literal["none", "nf4"] = "none"
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0
    does: Literal["train", "packed_loss"] = "train"
    product_s: float = 0.4
    compiled: bool = False
    shared: bool = True

    @staticmethod
    def read(path: Path) -> Job:
        return Job(**json.loads(path.read_text()))


@dataclass
class Steps:
    """What each step took and did: seconds, real tokens, tokens computed (padding too), learnt tokens, loss, norm."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    learnt: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)

    def check(self, steps: int) -> None:
        """Raise ValueError unless every list has one entry a step: a rate from half a record would be a lie."""
        lengths = {name: len(each) for name, each in asdict(self).items()}
        if set(lengths.values()) != {steps}:
            raise ValueError(f"{steps} steps were asked for, recorded were {lengths}")


@dataclass
class Ran:
    """One run's outcome: its steps, the machine's matrix products before and after, memory, or why there is none."""

    steps: Steps = field(default_factory=Steps)
    products: list[dict[str, float]] = field(default_factory=list)
    peak_bytes: int = 0
    gpu_peak_bytes: int | None = None
    device: str = "cpu"
    extra: dict[str, float] = field(default_factory=dict)
    fault: str | None = None
    wall_s: float = 0.0

    def rate(self, warmup: int) -> float:
        """Real tokens a second after the warm-up steps."""
        return sum(self.steps.tokens[warmup:]) / sum(self.steps.seconds[warmup:])

    def operations(self, weights: Any, warmup: int) -> float:
        """Needed floating-point operations a second after the warm-up steps (see product.py).

        Padding is no need, and tokens that were computed for several rows at once are counted once.
        """
        every = zip(self.steps.tokens[warmup:], self.steps.computed[warmup:], strict=True)
        tokens, learnt = sum(min(each) for each in every), sum(self.steps.learnt[warmup:])
        return float(weights.work(tokens, learnt)) / sum(self.steps.seconds[warmup:])

    @property
    def product(self) -> float:
        """The machine's matrix product around this run: the fastest shape, mean of before and after."""
        return statistics.fmean(max(rates.values()) for rates in self.products)


def run_job(job: Job, folder: Path, timeout_s: float = TIMEOUT_S) -> Ran:
    """Run a job in a fresh process; a run that fails comes back with its `fault`, not as an exception."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, done = folder / "job.json", folder / "ran.json"
    done.unlink(missing_ok=True)
    asked.write_text(json.dumps(asdict(job)))
    words = [sys.executable, "-m", "benchmarks.train.candidate", str(asked), str(done)]
    cost = measured(words, cwd=ROOT, timeout_s=timeout_s, every_s=LOOK_S)
    if cost.code or not done.is_file():
        return Ran(fault=why(cost, timeout_s), wall_s=cost.wall_s)
    found = json.loads(done.read_text())
    steps = Steps(**found.pop("steps"))
    return Ran(steps=steps, wall_s=cost.wall_s, **found)


def why(cost: Cost, timeout_s: float) -> str:
    """The last line of what a failed process said, or that its time was over."""
    if cost.code == -9:
        return f"no end within {timeout_s:.0f} s, or no memory left"
    return (cost.stderr.strip().splitlines() or [f"exit code {cost.code}"])[-1][:300]
