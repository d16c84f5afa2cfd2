"""From rows to a trained student: model, objective, stream, loop, and what the manifest says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.contract import Contract
from potstill.progress import say
from potstill.records import Example, Json
from potstill.stage import Shared

from .loop import Plan, device_of, train
from .model import student, whole
from .objectives import Objective
from .packing import Stream, Unit
from .rows import Tokenised
from .scoring import Scorer
from .speed import flops_a_token, matrix_product_flops
from .then import Judged, keep_finished, learn_judged, take_finished
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
    judged: Judged | None,
    out: Path,
    objective: Objective,
) -> Json:
    """Train and leave the best adapter in `out/adapter`; returns the figures for the manifest.

    With `judged`, preferences are learnt in a second phase; a run killed there goes on there.
    """
    from .run import resolved_quantization

    quantization = resolved_quantization(settings)
    model = make_student(settings, base, quantization)
    score = Scorer(shared, model, tokenizer, validation, settings.score_rows, Contract.read(out))
    figures = take_finished(out / "checkpoints", model) if judged else None
    if figures is None:
        figures = learn_answers(settings, model, objective, rows, held, score, out)
        figures |= {"method": settings.method, "quantization": quantization}
    if judged is not None and settings.then is not None:
        keep_finished(out / "checkpoints", model, figures)
        figures |= {"then": learn_judged(settings.then, judged, model, then_plan(settings), out, settings, score)}
    model.save_pretrained(out / "adapter")
    (out / "adapter" / "README.md").unlink(missing_ok=True)  # peft's template card; ours is the manifest
    return figures


def learn_answers(
    settings: Settings, model: Any, objective: Objective, rows: Tokenised, held: Tokenised, score: Scorer, out: Path
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
    done = train(model, objective, stream, held_units, plan_of(settings), watch, out / "checkpoints", score)
    return watch.verdict() | {
        "objective": {"name": objective.name, **getattr(objective, "facts", {})},
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


def then_plan(settings: Settings) -> Plan:
    """The plan of the second phase: the first one's with its own learning rate."""
    assert settings.then is not None
    return replace(plan_of(settings), learning_rate=settings.then.learning_rate)


def plan_of(settings: Settings) -> Plan:
    """How the loop goes on, from the recipe. Without packing every row is a micro-batch of its own."""
    return Plan(
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup_share=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        micro_tokens=settings.micro_tokens if settings.packing else 1,
        evals=settings.evals,
        patience=settings.patience,
        checkpoint_minutes=settings.checkpoint_minutes,
        checkpoint_steps=settings.checkpoint_steps,
    )
