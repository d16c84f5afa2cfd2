"""Our side: the only place of these benchmarks that knows how the train stage is called."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .job import Job, Steps
from .product import settle
from .rows import Row
from .start import same_start


def train(job: Job, rows: Sequence[Row]) -> Steps:
    """Train as the job says by the stage's own loop, with its default step size; nothing is evaluated."""
    from potstill import models
    from training.forecast import CPU_MICRO_TOKENS
    from training.loop import Plan
    from training.loop import train as loop
    from training.objectives.answers import Answers
    from training.run import Settings

    models.prepare_torch()
    default = Settings()
    units = units_of(rows)
    plan = Plan(
        learning_rate=job.learning_rate,
        schedule="linear",
        warmup_share=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        micro_tokens=default.micro_tokens or CPU_MICRO_TOKENS,
        evals=1,
        patience=None,
        checkpoint_minutes=1e9,
        checkpoint_steps=None,
    )
    steps, model = Steps(), student(job)
    with TemporaryDirectory() as folder:
        watch = clock(job, steps, Path(folder) / "log.jsonl")
        stream = stream_of(job, units, default.batch_tokens)
        loop(model, Answers(units), stream, [], plan, watch, Path(folder) / "checkpoints")
    return steps


def student(job: Job) -> Any:
    """The stage's student, from the job's adapter weights where it names any."""
    from training.batch import inner_of
    from training.beginnings import share
    from training.lean import make_lean
    from training.model import student as make

    wide = job.dtype == "float32"
    model = make(
        Path(job.base), quantization=job.quantization, rank=job.rank, alpha=job.alpha, dropout=0.0, seed=job.seed,
        lean=not wide,
    )  # fmt: skip
    if wide:
        model = model.float()
        make_lean(model)  # after the cast: it holds on to the weights as they are
    if job.adapter is not None:
        same_start(model, Path(job.adapter))
    if job.compiled:
        compile_loops(model)
    if job.shared:
        share(inner_of(model))
    return model


def compile_loops(model: Any) -> None:
    """What the stage does where a training is long; raises RuntimeError on a machine that cannot."""
    from training.batch import inner_of
    from training.fused import can_compile, fuse

    if not can_compile():
        raise RuntimeError("this machine has no C++ compiler that torch.compile can use")
    fuse(inner_of(model))


def units_of(rows: Sequence[Row]) -> list[Any]:
    """The rows as the stage's units, one a row."""
    from training.packing import Unit
    from training.rows import Row as StageRow

    found = [StageRow(f"r{at}", row.token_ids, ((len(row.prompt), len(row)),)) for at, row in enumerate(rows)]
    return [Unit(row.id, (row,)) for row in found]


def stream_of(job: Job, units: Sequence[Any], step_tokens: int) -> Any:
    """The stage's stream of steps; of the rows that the job gives for each step where it gives any."""
    from training.packing import Stream, Unit

    class Given(Stream):
        def step(self, step: int) -> list[Unit]:
            if job.batches is None:
                return super().step(step)
            return [units[at] for at in job.batches[step]]

    return Given(units, seed=job.seed, step_tokens=step_tokens, max_steps=job.steps)


def clock(job: Job, steps: Steps, log: Path) -> Any:
    """The stage's watch, with the seconds from the end of one step to the end of the next, logging and all."""
    from training.watch import Watch

    class Clock(Watch):
        last: float | None = None

        def begin(self, step: int) -> None:
            if self.last is None:
                settle(job.device)
                self.last = time.perf_counter()
            super().begin(step)

        def step(self, step: int, units: Sequence[Any], values: dict[str, Any]) -> None:
            super().step(step, units, values)
            settle(job.device)
            now, before = time.perf_counter(), self.last
            assert before is not None
            self.last = now
            steps.seconds.append(now - before)
            steps.tokens.append(sum(unit.tokens for unit in units))
            # rows stand behind each other, without padding; what begins alike is computed once
            steps.computed.append(round(steps.tokens[-1] * values.get("computed_share", 1.0)))
            steps.learnt.append(sum(row.supervised_tokens for unit in units for row in unit.rows))
            steps.losses.append(values["loss"])
            steps.gradient_norms.append(values["grad_norm"])

    return Clock(log, job.steps)


def packed_loss(job: Job, rows: Sequence[Row]) -> dict[str, float]:
    """Mean loss a learnt token over the job's first batch of rows: packed, and one row at a time."""
    from potstill import models
    from training.loop import held_out_loss
    from training.objectives.answers import Answers

    models.prepare_torch()
    model = student(job)
    units = units_of(rows)
    chosen = [units[at] for at in job.batches[0]] if job.batches else units[:16]
    objective = Answers(chosen)
    packed, _ = held_out_loss(model, objective, chosen, sum(unit.tokens for unit in chosen))
    alone, _ = held_out_loss(model, objective, chosen, 1)
    return {"packed": packed, "alone": alone}
