"""What a recipe's training would need, before anything is loaded: memory by part, the way chosen for a card, steps.

Used by `potstill check` and `potstill train --dry-run`; a probe of three real steps (probe.py) adds time and cost.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from potstill.errors import PotstillError
from potstill.known_bases import KNOWN
from potstill.model_shape import ModelShape, shape_of
from potstill.records import Json
from potstill.stage import Shared

from .memory import StepPlan, described, estimate
from .memory_choice import Choice, card_bytes, choose

if TYPE_CHECKING:
    from .rows import Tokenised
    from .run import Settings

ASSUMED_LEARNT_SHARE = 0.25  # of the tokens, as long as no dataset says it: chat rows lie between 0.1 and 0.4


def forecast(settings: Settings, shared: Shared, rows: Tokenised | None = None) -> Json:
    """Memory by part (bytes) and what would be chosen; with rows, also steps. `memory` is None for an unknown base.

    `choice` is None on a CPU, where a step is not divided and nothing is recomputed.
    """
    found: Json = {"base_model": shared.base_model, "shape": None, "memory": None, "choice": None, "exports": None}
    known = KNOWN.get(shared.base_model)
    found["licence"] = known.licence if known else None
    try:
        shape = shape_of(shared.base_model)
    except PotstillError as fault:
        found["why_no_memory"] = str(fault)
        shape = None
    if shape is not None:
        card = card_bytes(settings.gpu_memory_gib)
        plan = plan_of(settings, shape, rows, "cpu" if card is None else "cuda")
        found["shape"] = shape.to_json()
        if card is not None:
            chosen = choose_for(settings, shape, plan, rows, card)
            found["choice"] = chosen.to_json() | {"text": chosen.to_text()}
            found["memory"] = chosen.parts
        else:
            found["memory"] = estimate(shape, plan)
        found["plan"] = described(plan)
        found["exports"] = shape.family == "llama"  # what potstill.gguf_file writes
    return found | steps_of(settings, rows)


def plan_of(settings: Settings, shape: ModelShape, rows: Tokenised | None, device: Literal["cpu", "cuda"]) -> StepPlan:
    """The step that the settings describe, the whole batch at once."""
    tokens = settings.batch_tokens
    share = rows.supervised_tokens / max(rows.tokens, 1) if rows else ASSUMED_LEARNT_SHARE
    return StepPlan(
        device=device,
        micro_tokens=tokens,
        supervised_tokens=round(tokens * share),
        rank=settings.lora.rank,
        quantization="nf4" if settings.quantization == "nf4" else "none",
    )


def choose_for(settings: Settings, shape: ModelShape, plan: StepPlan, rows: Tokenised | None, card: int) -> Choice:
    """What these settings allow, on a card with so many bytes."""
    longest = max((len(row.token_ids) for row in rows.rows), default=0) if rows else settings.window
    allowed: tuple[Literal["none", "nf4"], ...] = ("none", "nf4")
    if settings.quantization != "auto":
        allowed = (settings.quantization,)
    elif settings.method != "qlora":
        allowed = ("none",)
    return choose(shape, plan, card, batch_tokens=settings.batch_tokens, longest_row=longest, quantizations=allowed)


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
