"""Figures of the candidates' runs in a record, and a record that keeps loss curves beside its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.record import Figure, Record

from .job import Job, Ran
from .product import Weights


@dataclass
class CurveRecord(Record):
    """A record whose JSON holds `curves` too: losses by candidate, in the order of steps."""

    curves: dict[str, list[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"curves": self.curves}


@dataclass
class Runs:
    """A candidate's runs of one job, those that failed left out; `fault` is the last failure's reason."""

    job: Job
    weights: Weights
    done: list[Ran] = field(default_factory=list)
    fault: str | None = None

    def add(self, ran: Ran) -> None:
        """Keep a run; of one that failed, its reason."""
        if ran.fault is None:
            self.done.append(ran)
        else:
            self.fault = ran.fault

    @property
    def rates(self) -> list[float]:
        return [each.rate(self.job.warmup) for each in self.done]

    @property
    def operations(self) -> list[float]:
        return [each.operations(self.weights, self.job.warmup) for each in self.done]

    @property
    def shares(self) -> list[float]:
        """Needed operations a second over the machine's matrix product around that very run."""
        return [done / each.product for done, each in zip(self.operations, self.done, strict=True)]

    @property
    def norms(self) -> list[float]:
        """Mean gradient norm of each run."""
        return [sum(each.steps.gradient_norms) / len(each.steps.gradient_norms) for each in self.done]

    @property
    def smallest_norm(self) -> float | None:
        return min((norm for each in self.done for norm in each.steps.gradient_norms), default=None)


def describe(record: Record, name: str, runs: Runs) -> Figure:
    """The candidate's figures; returns that of its speed."""
    speed = record.figure(f"{name}: real tokens/s", runs.rates, "tokens/s")
    record.figure(f"{name}: share of the matrix product", runs.shares, "share")
    record.figure(f"{name}: peak memory", [each.peak_bytes / 1e9 for each in runs.done], "GB")
    on_device = [each.gpu_peak_bytes / 1e9 for each in runs.done if each.gpu_peak_bytes is not None]
    if on_device:
        record.figure(f"{name}: peak memory on the GPU", on_device, "GB")
    record.figure(f"{name}: real tokens a step", _a_step(runs, "tokens"), "tokens")
    computed, real = _a_step(runs, "computed"), _a_step(runs, "tokens")
    both = list(zip(real, computed, strict=True))
    record.figure(f"{name}: padding", [max(0.0, 1 - needed / done) for needed, done in both], "share")
    record.figure(
        f"{name}: computed once for several rows", [max(0.0, 1 - done / all_) for all_, done in both], "share"
    )
    record.figure(f"{name}: learnt tokens a step", _a_step(runs, "learnt"), "tokens")
    record.figure(f"{name}: seconds a step", [1 / s * t for s, t in zip(runs.rates, real, strict=True)], "s")
    record.figure(f"{name}: gradient norm, mean", runs.norms, "")
    record.figure(f"{name}: last loss", [each.steps.losses[-1] for each in runs.done], "nats")
    if runs.fault:
        record.note(f"{name} could not run: {runs.fault}")
    return speed


def describe_machine(record: Record, every: Sequence[Runs]) -> None:
    """The machine's matrix product by shape, of all measurements before and after every run."""
    products = [rates for runs in every for each in runs.done for rates in each.products]
    for shape in products[0] if products else ():
        record.figure(f"matrix product {shape}, bf16", [rates[shape] / 1e9 for rates in products], "GFLOP/s")


def _a_step(runs: Runs, what: str) -> list[float]:
    """Mean over the timed steps of each run."""
    warmup = runs.job.warmup
    return [sum(part) / len(part) for each in runs.done if (part := getattr(each.steps, what)[warmup:])]
