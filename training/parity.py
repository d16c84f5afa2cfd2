"""Whether the loss is that of the model: logits of packed rows beside those of its own forward pass, row by row.

Training takes hidden states from the decoder and logits from the output head, of rows that stand behind each other
(batch.py). A model that does something in between, or whose layers look past the beginning of a row (convolutions,
recurrences), would be trained on another loss than the one that it is served with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from potstill.errors import PotstillError

from .batch import Batch, inner_of, shares, token_scores
from .lean import as_loaded
from .packing import Unit
from .rows import Row

ROWS, TOKENS = 3, 8  # rows that are compared, and the most tokens of each
INSTEAD = "take a base of the Llama, Mistral, Qwen, Gemma, Granite or Cohere family"
# of the norm of the logits: rounding in bf16 comes to 0.01 to 0.07, a missing scale or a leak to 0.7 or more
APART = 0.3
COMPILER = ("torch._dynamo", "torch._inductor")  # whose errors say nothing of the model


@torch.no_grad()
def refuse_unlike(model: Any, rows: Sequence[Row], name: str) -> None:
    """Raise PotstillError where a few short rows get other logits packed than from the model's own forward pass.

    `name` is the model in the recipe's words. Takes two forward passes of 24 tokens, four where rows share their
    beginnings, and no random number. Where weights are sharded every process must call it, since they are gathered by
    all; all come to the same verdict.
    """
    was_training = model.training
    model.eval()
    kind = inner_of(model).config.model_type
    try:
        few = _short(rows)
        apart = _furthest(model, few)
        if shares(model):
            apart = max(apart, _furthest(model, [*few, *map(_ending_otherwise, few)], share=True))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as fault:
        if type(fault).__module__.startswith(COMPILER):
            raise PotstillError(
                f"train.compile: a loop cannot be compiled on this machine ({type(fault).__name__}: "
                f"{str(fault)[:300]}); set train.compile: false"
            ) from fault
        raise PotstillError(
            f"{name}: architecture {kind!r} cannot be trained: its layers do not take rows that stand behind each "
            f"other ({type(fault).__name__}: {fault}); {INSTEAD}"
        ) from fault
    model.train(was_training)
    if not apart <= APART:
        raise PotstillError(
            f"{name}: architecture {kind!r} cannot be trained: packed for training, rows get logits that are "
            f"{apart:.0%} off those of the model's own forward pass (expected at most {APART:.0%}), since its layers "
            f"see past the beginning of a row or it scales what training does not; {INSTEAD}"
        )


def _short(rows: Sequence[Row]) -> list[Row]:
    """The beginnings of a few rows, all as long; all but their first token are compared."""
    found = [row.token_ids for row in rows if len(row.token_ids) > 1][:ROWS]
    length = min(map(len, found), default=0)
    return [Row(str(at), ids[: min(length, TOKENS)], ((1, min(length, TOKENS)),)) for at, ids in enumerate(found)]


def _ending_otherwise(row: Row) -> Row:
    """The row with the tokens of its second half the other way round: it shares the first."""
    half = len(row.token_ids) // 2
    return Row(f"{row.id}, turned", [*row.token_ids[:half], *row.token_ids[half:][::-1]], row.learnt)


def _furthest(model: Any, rows: Sequence[Row], *, share: bool = False) -> float:
    """The largest distance of a row's logits, as a share of their own norm; `share`: common beginnings once."""
    device = str(next(model.parameters()).device)  # of a teacher, too, of which nothing is trained
    batch = Batch.of([Unit(row.id, (row,)) for row in rows], device, share)
    parts: list[Tensor] = []

    def keep(logits: Tensor, _: Batch, __: slice) -> Tensor:
        parts.append(logits)
        return logits.new_zeros(len(logits))

    token_scores(model, batch, keep)
    with as_loaded(model):
        each = torch.tensor([row.token_ids for row in rows], device=device)
        own = inner_of(model)(input_ids=each, use_cache=False).logits[:, :-1].float()
    packed = torch.cat(parts).view_as(own)
    packed, own = (each - each.mean(2, keepdim=True) for each in (packed, own))  # softmax does not see the mean
    return float(((packed - own).norm(dim=(1, 2)) / own.norm(dim=(1, 2)).clamp(min=1e-9)).max())
