"""From rows to a trained student: model, objective, stream, loop, and what the manifest says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.contract import Contract
from potstill.progress import say
from potstill.records import Example, Json
from potstill.stage import Shared

from .forecast import Way, way_here
from .loop import Plan, device_of, train
from .model import student, whole
from .objectives.answers import Answers
from .packing import Stream, Unit
from .rows import Tokenised
from .scoring import Scorer
from .speed import flops_a_token, matrix_product_flops
from .watch import Watch

if TYPE_CHECKING:
    from .run import Settings


def fit(
    settings: Settings,
    shared: Shared,
    base: Path,
    tokenizer: Any,
    rows: Tokenised,
    held: Tokenised,
    validation: Sequence[Example],
    out: Path,
) -> Json:
    """Train and leave the best adapter in `out/adapter`; returns the figures for the manifest."""
    from .run import resolved_quantization

    way = way_here(settings, base, rows, held, resolved_quantization(settings), out / "checkpoints")
    model = make_student(settings, base, way.quantization)
    if way.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    units, held_units = units_of(rows), units_of(held)
    stream = Stream(
        units,
        seed=settings.seed,
        step_tokens=settings.batch_tokens,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
    )
    watch = Watch(
        out / "trainer_log.jsonl",
        stream.steps,
        flops=flops_a_token(model),
        peak_flops=matrix_product_flops(device_of(model).partition(":")[0]),
    )
    say(
        f"training {len(rows.rows):,} rows ({rows.tokens:,} tokens, {rows.supervised_tokens:,} learnt), "
        f"{stream.steps:,} steps"
    )
    score = Scorer(shared, model, tokenizer, validation, settings.score_rows, Contract.read(out))
    done = train(model, Answers(units), stream, held_units, plan_of(settings, way), watch, out / "checkpoints", score)
    learnt = watch.verdict()
    model.save_pretrained(out / "adapter")
    (out / "adapter" / "README.md").unlink(missing_ok=True)  # peft's template card; ours is the manifest
    return learnt | {
        "method": settings.method,
        **asdict(way),
        "tokens_an_epoch": rows.tokens,
        "supervised_tokens_an_epoch": rows.supervised_tokens,
        "best_checkpoint_step": done.best_step,
        "stopped_early": done.stopped,
    }


def make_student(settings: Settings, base: Path, quantization: Any) -> Any:
    """The model that the recipe asks for, ready to be trained."""
    if settings.method == "full":
        return whole(base, seed=settings.seed)
    return student(
        base,
        quantization=quantization,
        rank=settings.lora.rank,
        alpha=settings.lora.alpha,
        dropout=settings.lora.dropout,
        variant=settings.lora.variant,
        seed=settings.seed,
    )


def units_of(tokenised: Tokenised) -> list[Unit]:
    """Each row alone: what supervised fine-tuning learns from."""
    return [Unit(row.id, (row,)) for row in tokenised.rows]


def plan_of(settings: Settings, way: Way) -> Plan:
    """How the loop goes on, from the recipe. Without packing every row is a micro-batch of its own."""
    return Plan(
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_share=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        micro_tokens=way.micro_tokens if settings.packing else 1,
        evals=settings.evals,
        patience=settings.patience,
        checkpoint_minutes=settings.checkpoint_minutes,
        checkpoint_steps=settings.checkpoint_steps,
    )
