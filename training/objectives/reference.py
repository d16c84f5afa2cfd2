"""The reference of DPO and KTO: how likely every row's answer was to the model before the first step of the phase.

A fresh adapter changes nothing, so that the reference is the base then; after supervised training it is that result.
It is computed once and kept: a step costs one forward pass, and a resumed run reads the very same numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import DamagedInput
from potstill.manifest import sha256_json, write_atomically
from potstill.progress import track

from ..memory import REFERENCE_TOKENS
from ..packing import Unit, micro_batches
from ..rows import Row
from ..weights import device_of, trained_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ..batch import Batch

FILE = "reference.json"


def reference_logprobs(model: Any, rows: Sequence[Row], folder: Path) -> dict[str, float]:
    """Log-probability of every row's learnt tokens under the model as it is now, by the row's id.

    Kept as `reference.json` in `folder`, and taken from there when rows and trained weights are the same as then: call
    it before a checkpoint is restored. Raises DamagedInput where two rows share an id.
    """
    if len({row.id for row in rows}) < len(rows):
        raise DamagedInput("preferences: two rows have the same id; distil the log again")
    of = sha256_json([_weights_digest(model), [[row.id, row.token_ids, row.learnt] for row in rows]])
    found = _kept(folder / FILE, of)
    if found is None:
        found = logprobs(model, rows, "reference")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, json.dumps({"of": of, "logprobs": found}).encode())
    return {row.id: value for row, value in zip(rows, found, strict=True)}


def logprobs(model: Any, rows: Sequence[Row], what: str | None = None) -> list[float]:
    """The log-probability of each row's learnt tokens, without dropout or gradients; `what` names the progress."""
    import torch

    from ..batch import Batch, shares, token_scores

    was_training = model.training
    model.eval()
    found: list[float] = []
    groups = micro_batches([Unit(row.id, (row,)) for row in rows], REFERENCE_TOKENS)
    with torch.no_grad():
        for group in track(groups, what, len(groups), "batches") if what else groups:
            batch = Batch.of(group, device_of(model), shares(model))
            found += batch.row_sums(token_scores(model, batch)[0]).tolist()
    model.train(was_training)
    return found


def of_rows(reference: dict[str, float], batch: Batch) -> Tensor:
    """[R]: the reference's log-probability of each row of a batch."""
    import torch

    values = [reference[row.id] for unit in batch.units for row in unit.rows]
    return torch.tensor(values, dtype=torch.float32, device=batch.targets.device)


def _weights_digest(model: Any) -> str:
    """The sha256 of the weights that training moves, with their names; the others are the base's."""
    digest = hashlib.sha256()
    for name, parameter in sorted(trained_weights(model).items()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _kept(path: Path, of: str) -> list[float] | None:
    """What was kept for these very rows and weights; None where nothing was, or for others."""
    try:
        found = json.loads(path.read_bytes())
        return list(found["logprobs"]) if found["of"] == of else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
