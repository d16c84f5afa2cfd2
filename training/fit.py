"""From rows to a trained student: model, objective, stream, loop, and what the manifest says of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.contract import Contract
from potstill.progress import say
from potstill.records import Example, Json
from potstill.stage import Shared
from potstill.tracking_stages import then_line
from potstill.trained import save_trained

from . import processes
from .batch import inner_of
from .beginnings import share
from .forecast import CPU_MICRO_TOKENS, Way, units_of, way_here
from .fused import can_compile, fuse
from .kernels import put_in
from .loop import Plan, train
from .model import student, whole
from .objectives import Objective
from .packing import Stream
from .parity import refuse_unlike
from .rows import Tokenised
from .scoring import Scorer
from .speed import flops_a_token, matrix_product_flops
from .then import Judged, keep_finished, learn_judged, take_finished
from .watch import Watch
from .weights import device_of

if TYPE_CHECKING:
    from .run import Settings

PLOT, THEN_PLOT = "training.svg", "then.svg"
Live = Callable[[Json], None] | None


def fit(
    settings: Settings,
    shared: Shared,
    base: Path,
    tokenizer: Any,
    rows: Tokenised,
    held: Tokenised,
    validation: Sequence[Example],
    judged: Judged | None,
    out: Path,
    objective: Objective,
    live: Live = None,
) -> Json:
    """Train and leave the best weights in `out` (see potstill/trained.py); returns the figures for the manifest.

    With `judged`, preferences are learnt in a second phase; a run killed there goes on there. `live` gets every line
    of the log as it happens. Of several processes the first one's figures count.
    """
    from .run import resolved_quantization

    folder = out / "checkpoints"
    way = processes.by_first(
        lambda: way_here(settings, base, rows, held, resolved_quantization(settings), folder, judged)
    )
    model = make_student(settings, base, way.quantization, way.copied)
    if way.fused and device_of(model) == "cpu" and can_compile():
        say(f"{fuse(inner_of(model))} modules work by compiled loops")
    share(inner_of(model))
    refuse_unlike(model, rows.rows, f"base_model: {shared.base_model}")
    if way.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    score = Scorer(shared, model, tokenizer, validation, settings.score_rows, Contract.read(out))
    figures = processes.by_first(lambda: take_finished(folder, model)) if judged else None
    if figures is None:
        figures = learn_answers(settings, plan_of(settings, way), model, objective, rows, held, score, out, live)
        figures |= {"method": settings.method, **asdict(way), "processes": processes.count()}
    if judged is not None and settings.then is not None:
        if processes.first():
            keep_finished(folder, model, figures)
        plan = then_plan(settings, way)
        figures |= {"then": learn_judged(settings.then, judged, model, plan, out, settings, score, under_then(live))}
    return figures | {"weights": save_trained(model, out).name} if processes.first() else {}


def under_then(live: Live) -> Live:
    """The second phase's lines, under names of their own."""
    return None if live is None else lambda line: live(then_line(line))


def learn_answers(
    settings: Settings,
    plan: Plan,
    model: Any,
    objective: Objective,
    rows: Tokenised,
    held: Tokenised,
    score: Scorer,
    out: Path,
    live: Live = None,
) -> Json:
    """The first phase: supervised fine-tuning or distillation. The best weights are left in the model."""
    units, held_units = units_of(rows), units_of(held)
    stream = Stream(
        units,
        seed=settings.seed,
        step_tokens=settings.batch_tokens,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
    )
    watch = watch_of(model, stream, out / "trainer_log.jsonl", out / PLOT, live)
    say(
        f"training {len(rows.rows):,} rows ({rows.tokens:,} tokens, {rows.supervised_tokens:,} learnt), "
        f"{stream.steps:,} steps"
    )
    done = train(model, objective, stream, held_units, plan, watch, out / "checkpoints", score)
    if not processes.first():
        return {}
    return watch.verdict(done.best_step) | {
        "objective": {"name": objective.name, **getattr(objective, "facts", {})},
        "tokens_an_epoch": rows.tokens,
        "supervised_tokens_an_epoch": rows.supervised_tokens,
        "best_checkpoint_step": done.best_step,
        "stopped_early": done.stopped,
    }


def make_student(settings: Settings, base: Path, quantization: Any, copied: bool = True) -> Any:
    """The model that the recipe asks for, ready to be trained; `copied`: an NF4 base on a CPU has a copy in bf16."""
    if settings.method == "full":
        made = whole(base, seed=settings.seed)
        put_in(settings, made)
        return made
    sharded = settings.shard == "full"
    made = student(
        base,
        quantization=quantization,
        rank=settings.lora.rank,
        alpha=settings.lora.alpha,
        dropout=settings.lora.dropout,
        variant=settings.lora.variant,
        seed=settings.seed,
        shardable=sharded,
        lean=copied,
    )
    put_in(settings, made)
    return processes.shard(made) if sharded else made


def watch_of(model: Any, stream: Stream, log: Path, plot: Path, live: Live) -> Watch:
    """The watch of one phase. One process writes its log and its plot: the others' lines are the same.

    A step's tokens are those of all processes, and so is what their devices, taken to be alike, could multiply.
    """
    writes = processes.first()
    return Watch(
        log if writes else Path(os.devnull),
        stream.steps,
        flops=flops_a_token(model),
        peak_flops=matrix_product_flops(device_of(model).partition(":")[0]) * processes.count(),
        live=live,
        plot=plot if writes else None,
    )


def then_plan(settings: Settings, way: Way | None = None) -> Plan:
    """The plan of the second phase: the first one's with its own learning rate."""
    assert settings.then is not None
    return replace(plan_of(settings, way), learning_rate=settings.then.learning_rate, keep_start=True)


def plan_of(settings: Settings, way: Way | None = None) -> Plan:
    """How the loop goes on, from the recipe and what was chosen. Without packing every row is a micro-batch."""
    most = way.micro_tokens if way else settings.micro_tokens or CPU_MICRO_TOKENS
    return Plan(
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_share=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        micro_tokens=most if settings.packing else 1,
        evals=settings.evals,
        patience=settings.patience,
        checkpoint_minutes=settings.checkpoint_minutes,
        checkpoint_steps=settings.checkpoint_steps,
        paged_8bit=settings.optimizer == "paged_adamw_8bit",
    )
