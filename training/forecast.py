"""What a recipe's training would need, before anything is loaded: memory by part, the way chosen for a card, steps.

Used by `potstill check` and `potstill train --dry-run`; a probe of three real steps (probe.py) adds time and cost.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from potstill.errors import PotstillError
from potstill.gguf_layout import EXPORTED_FAMILIES
from potstill.known_bases import KNOWN
from potstill.manifest import write_atomically
from potstill.model_shape import ModelShape, shape_of
from potstill.progress import say
from potstill.records import Json
from potstill.stage import Shared

from . import processes
from .memory import StepPlan, described, estimate
from .memory_choice import Choice, card_bytes, choose
from .packing import Stream, Unit, micro_batches

if TYPE_CHECKING:
    from .rows import Tokenised
    from .run import Settings

ASSUMED_LEARNT_SHARE = 0.25  # of the tokens, as long as no dataset says it: chat rows lie between 0.1 and 0.4
CHOSEN = "way.json"
CPU_MICRO_TOKENS = 4096  # on a CPU larger products are no faster


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is done: quantisation of the base, recomputing of activations, tokens a micro-batch, compiling."""

    quantization: Literal["none", "nf4"]
    checkpointing: bool
    micro_tokens: int
    fused: bool = False


def forecast(settings: Settings, shared: Shared, rows: Tokenised | None = None, held: Tokenised | None = None) -> Json:
    """Memory by part (bytes) and what would be chosen; with rows, also steps. `memory` is None for an unknown base.

    `choice` is None on a CPU, where nothing needs to be chosen.
    """
    found: Json = {"base_model": shared.base_model, "shape": None, "memory": None, "choice": None, "exports": None}
    known = KNOWN.get(shared.base_model)
    found["licence"] = known.licence if known else None
    shape = None
    try:
        shape = shape_of(shared.base_model)
    except PotstillError as fault:
        found["why_no_memory"] = str(fault)
    if shape is not None:
        card = card_bytes(settings.gpu_memory_gib)
        plan = plan_of(settings, rows, held, "cpu" if card is None else "cuda")
        found["shape"] = shape.to_json()
        if card is None:
            found["memory"] = estimate(shape, plan)
        else:
            chosen = choose_for(settings, shape, plan, card)
            plan = chosen.plan
            found["choice"] = chosen.to_json() | {"text": chosen.to_text()}
            found["memory"] = chosen.parts
        found["plan"] = described(plan)
        found["exports"] = shape.family in EXPORTED_FAMILIES and not shape.other_parameters
    return found | steps_of(settings, rows)


def plan_of(
    settings: Settings, rows: Tokenised | None, held: Tokenised | None, device: Literal["cpu", "cuda"]
) -> StepPlan:
    """The step that the settings describe, before anything is chosen for a card."""
    most = settings.micro_tokens or (CPU_MICRO_TOKENS if device == "cpu" else settings.batch_tokens)
    lengths = [len(row.token_ids) for row in rows.rows] if rows else [settings.window]
    together = max(processes.count(), settings.devices)
    tokens = max(min(-(-settings.batch_tokens // together), most), max(lengths))
    if rows and device == "cpu":
        tokens = _largest_micro_batch(settings, rows, tokens)
    share = rows.supervised_tokens / max(rows.tokens, 1) if rows else ASSUMED_LEARNT_SHARE
    full = settings.method == "full"
    return StepPlan(
        device=device,
        micro_tokens=tokens if settings.packing else max(lengths),
        supervised_tokens=round(tokens * share),
        adapter="full" if full else "dora" if settings.lora.variant == "dora" else "lora",
        rank=settings.lora.rank,
        quantization="nf4" if settings.quantization == "nf4" and not full else "none",
        checkpointing=settings.activation_checkpointing == "on",
        row_tokens=round(sum(length * length for length in lengths) / max(sum(lengths), 1)),
        longest_row=max(lengths),
        held_tokens=min(most, held.tokens) if held else 0,
        optimizer="paged_8bit" if settings.optimizer == "paged_adamw_8bit" else "adamw",
        shards=together if settings.shard == "full" else 1,
        teacher_parameters=_teacher_parameters(settings),
    )


def _largest_micro_batch(settings: Settings, rows: Tokenised, most: int) -> int:
    """Tokens of the largest micro-batch of the first epoch: long rows, which stay whole, leave their steps unfilled."""
    units = [Unit(row.id, (row,)) for row in rows.rows]
    stream = Stream(units, seed=settings.seed, step_tokens=settings.batch_tokens)
    steps = (stream.step(at) for at in range(stream.steps))
    return max(sum(unit.tokens for unit in micro) for step in steps for micro in micro_batches(step, most))


def _teacher_parameters(settings: Settings) -> int:
    """Of a teacher that stays loaded beside the student; 0 where its shape is not known."""
    if settings.objective != "on_policy" or settings.distil.teacher is None:
        return 0
    try:
        shape = shape_of(settings.distil.teacher)
    except PotstillError:
        return 0
    return 0 if shape is None else shape.parameters


def choose_for(settings: Settings, shape: ModelShape, plan: StepPlan, card: int) -> Choice:
    """What these settings leave open, chosen for a card with so many bytes."""
    allowed: tuple[Literal["none", "nf4"], ...] = ("none", "nf4")
    if settings.method != "qlora":
        allowed = ("none",)
    if settings.quantization != "auto" and settings.method != "full":
        allowed = (settings.quantization,)
    again = {"auto": (False, True), "on": (True,), "off": (False,)}[settings.activation_checkpointing]
    return choose(
        shape,
        plan,
        card,
        batch_tokens=plan.micro_tokens,
        longest_row=plan.longest_row if settings.micro_tokens is None else plan.micro_tokens,
        quantizations=allowed,
        checkpointings=again,
    )


def way_here(
    settings: Settings,
    base: Path,
    rows: Tokenised,
    held: Tokenised,
    quantization: Literal["none", "nf4"],
    folder: Path,
) -> Way:
    """How the steps are done on this machine; says what was chosen for a GPU, and when it will not fit.

    `quantization` is what the settings mean where there is nothing to choose by. What was chosen stands in `folder`:
    a run that goes on does so in the same way, however much of the card others have taken meanwhile.
    """
    plain = Way(quantization, settings.activation_checkpointing == "on", settings.micro_tokens or CPU_MICRO_TOKENS)
    card = card_bytes(None)
    if card is None:
        return replace(plain, fused=fused_here(settings, rows))
    chosen_before = folder / CHOSEN
    if chosen_before.is_file():
        return Way(**json.loads(chosen_before.read_text()))
    try:
        shape = shape_of(str(base))
    except PotstillError as fault:
        say(f"nothing is chosen by the memory of the GPU: {fault}")
        return plain
    assert shape is not None  # a base that was resolved is a folder
    chosen = choose_for(settings, shape, plan_of(settings, rows, held, "cuda"), card)
    say(chosen.to_text())
    way = Way(chosen.quantization, chosen.checkpointing, chosen.micro_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(chosen_before, json.dumps(asdict(way)).encode())
    return way


def fused_here(settings: Settings, rows: Tokenised) -> bool:
    """Whether elementwise work is compiled on this processor (fused.py): where that is asked for, or gains time."""
    from .fused import can_compile, worth_it

    if processes.count() > 1 or settings.compile is False:
        return False
    if settings.compile is True:
        return can_compile()
    return worth_it(steps_of(settings, rows)["tokens"])


def steps_of(settings: Settings, rows: Tokenised | None) -> Json:
    """Tokens and steps of the whole training."""
    if rows is None:
        return {"tokens": None, "steps": settings.max_steps}
    tokens = round(rows.tokens * settings.epochs)
    steps = settings.max_steps or max(1, math.ceil(tokens / settings.batch_tokens))
    return {"tokens": tokens if settings.max_steps is None else steps * settings.batch_tokens, "steps": steps}


def time_and_cost(settings: Settings, tokens: int, tokens_per_second: float) -> Json:
    """Hours for the recipe's training (steps alone, without scoring) and, with a price, dollars."""
    hours = tokens / tokens_per_second / 3600
    price = settings.machine_usd_per_hour
    return {"hours": round(hours, 4), "usd": None if price is None else round(hours * price, 4)}
