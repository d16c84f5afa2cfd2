"""Log-probabilities of whole answers: of the model that learns, and of the reference, which is what it began as.

The reference of DPO and KTO is the model before the first step of their phase (a fresh adapter changes nothing, so
that it is the base then; after supervised training it is that result). Its log-probabilities are computed once, before
the first step, and kept: a step costs one forward pass, and a resumed run reads the very same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import DamagedInput
from potstill.manifest import sha256_json, write_atomically
from potstill.records import Json

from ..rows import Row

if TYPE_CHECKING:
    from torch import Tensor


def row_logprobs(logits: Tensor, targets: Tensor, row_of: Tensor, rows: int) -> Tensor:
    """Summed log-probability of every row's learnt tokens, float32 [rows]; 0 for a row that learns none.

    `logits` [N, V] stand in front of the `targets` [N]; `row_of` [N] says which row each belongs to.
    """
    import torch

    found = -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    return torch.zeros(rows, device=found.device).index_add(0, row_of, found)


def fingerprint(rows: Sequence[Row], start: str) -> str:
    """What a kept reference belongs to: the rows, token by token, and the digest of the weights that began."""
    return sha256_json([start, [[row.id, row.token_ids, row.learnt] for row in rows]])


def reference_logprobs(
    path: Path, rows: Sequence[Row], start: str, compute: Callable[[Sequence[Row]], Sequence[float]], *, begun: bool
) -> dict[str, float]:
    """The reference's log-probability of every row by the row's id: as kept at `path`, else computed and kept there.

    `compute` asks the model as it is now; with `begun` it has moved on already, so that only what was kept is right.
    Raises DamagedInput where the phase has begun and what was kept is missing or belongs to other rows.
    """
    wanted = fingerprint(rows, start)
    kept = _kept(path)
    if kept is not None and kept["of"] == wanted:
        return {row.id: value for row, value in zip(rows, kept["logprobs"], strict=True)}
    if begun:
        raise DamagedInput(
            f"{path}: {'missing' if kept is None else 'made for other rows or another start'}, though training has "
            "begun: the reference cannot be computed any more; remove this phase's checkpoints to begin it again"
        )
    found = [float(value) for value in compute(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"of": wanted, "logprobs": found}).encode())
    return {row.id: value for row, value in zip(rows, found, strict=True)}


def _kept(path: Path) -> Json | None:
    if not path.is_file():
        return None
    try:
        found: Json = json.loads(path.read_bytes())
    except ValueError as fault:
        raise DamagedInput(f"{path}: not readable ({fault}); remove this phase's folder to begin it again") from fault
    return found
