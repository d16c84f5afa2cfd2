"""Full fine-tuning: what it cannot be combined with, and the memory that it needs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import PotstillError
from potstill.model_shape import shape_of
from potstill.progress import say

if TYPE_CHECKING:
    from .run import Settings

# bf16 weight and gradient (2 + 2), float32 master copy, gradient and two moments (4 each): see optimizer.py
BYTES_A_PARAMETER = 20
MOST_ON_A_PROCESSOR = 1_000_000_000  # parameters; a step of more would take minutes where it fits at all


def parameters_of(base: Path) -> int:
    """The parameters of a folder of safetensors, read from the headers alone (tied weights stand there once).

    Before the weights are here those of its config; 0 for an architecture without a formula.
    """
    from math import prod

    from safetensors import safe_open

    files = sorted(base.glob("*.safetensors"))
    if not files:
        with suppress(PotstillError):
            shape = shape_of(str(base))
            return 0 if shape is None else shape.parameters
    count = 0
    for path in files:
        with safe_open(path, framework="pt") as stream:
            count += sum(prod(stream.get_slice(name).get_shape()) for name in stream.keys())  # noqa: SIM118
    return count


def refuse_full(settings: Settings, base: Path) -> None:
    """Say which settings `method: full` leaves unused; raise PotstillError for a base too large for a processor."""
    if settings.method != "full":
        return
    if "lora" in settings.model_fields_set:
        say("train.lora: not used, since train.method is full: there is no adapter")
    import torch

    count = parameters_of(base)
    if not torch.cuda.is_available() and count > MOST_ON_A_PROCESSOR:
        raise PotstillError(
            f"train.method: full on a processor: the base has {count / 1e9:.1f} billion parameters and would need "
            f"{count * BYTES_A_PARAMETER / 2**30:.0f} GiB before activations ({BYTES_A_PARAMETER} bytes each), "
            f"expected at most {MOST_ON_A_PROCESSOR / 1e9:.0f} billion; train an adapter (method: lora), or on a GPU"
        )
