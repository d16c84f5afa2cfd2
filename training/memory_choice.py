"""Which way of training fits a card: quantisation, activation checkpointing and tokens a micro-batch. Pure functions.

What is tried first is what is fastest. Recomputing activations repeats the forward pass, which with frozen weights is
half of a step; NF4 costs one dequantisation a weight and pass, which thousands of tokens share. So memory is first
made by NF4 (where the method allows it), then by checkpointing, and last by micro-batches too small to fill a card.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from potstill.model_shape import ModelShape
from potstill.records import Json

from .memory import StepPlan, estimate

GIB = 2**30
FULL_SPEED_TOKENS = 2048  # a micro-batch from which matrix products, not launches and weights, take the time
HEADROOM = 0.95  # of a card's nominal memory: what the driver, the display and rounding leave


@dataclass(frozen=True, slots=True)
class Choice:
    """What would be done, its memory by part, and whether it fits into `available_bytes`."""

    plan: StepPlan
    parts: dict[str, int]
    available_bytes: int
    fits: bool
    micro_tokens: int

    @property
    def quantization(self) -> Literal["none", "nf4"]:
        return self.plan.quantization

    @property
    def checkpointing(self) -> bool:
        return self.plan.checkpointing

    def to_json(self) -> Json:
        return {
            "quantization": self.quantization,
            "checkpointing": self.checkpointing,
            "micro_tokens": self.micro_tokens,
            "total_bytes": self.parts["total"],
            "available_bytes": self.available_bytes,
            "fits": self.fits,
        }

    def to_text(self) -> str:
        fits = "fits into" if self.fits else "DOES NOT FIT into"
        return (
            f"{'bf16' if self.quantization == 'none' else 'NF4'}, "
            f"{'with' if self.checkpointing else 'without'} activation checkpointing, {self.micro_tokens:,} tokens a "
            f"micro-batch: {self.parts['total'] / GIB:.1f} GiB, {fits} {self.available_bytes / GIB:.1f} GiB"
        )


def choose(
    shape: ModelShape,
    plan: StepPlan,
    available_bytes: int,
    *,
    batch_tokens: int,
    longest_row: int,
    quantizations: Sequence[Literal["none", "nf4"]] = ("none", "nf4"),
    checkpointings: Sequence[bool] = (False, True),
    then: StepPlan | None = None,
) -> Choice:
    """The fastest way that fits; `plan` gives the rest (its tokens are a share of learnt ones, nothing more).

    With `then`, a second phase that goes the same way, both have to fit; the plan is that of the larger one.

    A micro-batch is the batch or a half, quarter ... of it, never smaller than the longest row. When nothing fits, the
    smallest way with `fits` false: the caller says so before anything is loaded.
    """
    enough = max(longest_row, min(batch_tokens, FULL_SPEED_TOKENS))
    sizes = [*_micro_batches(batch_tokens, longest_row)]
    ways = [(quantization, again) for again in checkpointings for quantization in quantizations]
    tried = [(*way, size) for way in ways for size in sizes if size >= enough]
    tried += [(*way, size) for size in sizes if size < enough for way in ways]
    smallest: Choice | None = None
    for quantization, again, tokens in tried:
        phases = [_cut(plan, tokens)] + ([_cut(then, min(tokens, then.micro_tokens))] if then else [])
        phases = [replace(each, quantization=quantization, checkpointing=again) for each in phases]
        way, parts = larger(shape, phases)
        fits = parts["total"] <= available_bytes
        found = Choice(way, parts, available_bytes, fits, tokens)
        if fits:
            return found
        if smallest is None or parts["total"] < smallest.parts["total"]:
            smallest = found
    assert smallest is not None
    return smallest


def _cut(plan: StepPlan, tokens: int) -> StepPlan:
    """The plan with micro-batches of so many tokens, learnt ones in proportion; what it never cuts stays whole."""
    tokens = max(tokens, plan.largest_unit)
    share = plan.supervised_tokens / max(plan.micro_tokens, 1)
    held = min(tokens, plan.held_tokens)
    return replace(plan, micro_tokens=tokens, supervised_tokens=round(tokens * share), held_tokens=held)


def larger(shape: ModelShape, phases: Sequence[StepPlan]) -> tuple[StepPlan, dict[str, int]]:
    """The phase that takes the most memory, and its parts."""
    return max(((each, estimate(shape, each)) for each in phases), key=lambda found: found[1]["total"])


def _micro_batches(batch_tokens: int, longest_row: int) -> Iterator[int]:
    """The batch, its half, its quarter ... down to the longest row, which itself is the last."""
    size = max(batch_tokens, longest_row)
    while size > longest_row:
        yield size
        size = -(-size // 2)
    yield longest_row


def card_bytes(gpu_memory_gib: float | None) -> int | None:
    """Bytes that training may use of a GPU: what is free on the one here, else of the one that the recipe names."""
    found = _free_here()
    if found is not None:
        return found
    return None if gpu_memory_gib is None else round(gpu_memory_gib * GIB * HEADROOM)


def _free_here() -> int | None:
    """Free bytes of the GPU of this machine; torch is not imported where there can be none."""
    if shutil.which("nvidia-smi") is None or importlib.util.find_spec("torch") is None:
        return None
    import torch

    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None
