"""Soft targets of many rows in little memory: token ids in 16 bits where the vocabulary allows, weights in half floats.

A position of 24 tokens takes about 100 bytes; half a float rounds a weight by at most one part in two thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from potstill.progress import say

from .batch import Batch
from .checkpoints import read_checkpoint, write_checkpoint
from .rows import Row
from .soft_targets import NO_TOKEN, SoftTargets


@dataclass(frozen=True)
class TargetStore:
    """Rows' positions behind each other: `counts` [N] tokens each, `ids` and `weights` of all of them, `rest` [N]."""

    first: dict[str, int]  # the first position of a row, by its id
    counts: Tensor
    ids: Tensor
    weights: Tensor
    rest: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], targets: SoftTargets, vocabulary: int) -> TargetStore:
        """`targets` of every learnt token of the rows, in their order."""
        lengths = [row.supervised_tokens for row in rows]
        known = targets.ids != NO_TOKEN
        small = torch.uint16 if vocabulary <= 2**16 else torch.int32
        return cls(
            dict(zip((row.id for row in rows), accumulate([0, *lengths[:-1]]), strict=True)),
            known.sum(1).to(torch.int16),
            targets.ids[known].to(torch.int32).to(small),
            targets.weights[known].to(torch.float16),
            targets.rest.to(torch.float16),
        )

    @property
    def size_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in (self.counts, self.ids, self.weights, self.rest))

    def of_batch(self, batch: Batch) -> SoftTargets:
        """The targets of a batch's learnt tokens, on its device; rows that are not known have none."""
        rows = [row for unit in batch.units for row in unit.rows]
        places: list[int] = []
        for row in rows:
            start = self.first.get(row.id)
            places += [-1] * row.supervised_tokens if start is None else range(start, start + row.supervised_tokens)
        at = torch.tensor(places)
        counts = torch.where(at >= 0, self.counts[at.clamp_min(0)].long(), 0)
        offsets = self.offsets[at.clamp_min(0)]
        columns = torch.arange(max(int(counts.max()), 1) if len(counts) else 1)
        known = columns < counts[:, None]
        cells = (offsets[:, None] + columns).where(known, 0)
        if not len(self.ids):
            return SoftTargets(torch.full(cells.shape, NO_TOKEN), torch.zeros(cells.shape), torch.zeros(len(at)))
        device = batch.input_ids.device
        return SoftTargets(
            torch.where(known, _gather(self.ids, cells), NO_TOKEN).to(device),
            torch.where(known, self.weights[cells].float(), 0.0).to(device),
            torch.where(counts > 0, self.rest[at.clamp_min(0)].float(), 0.0).to(device),
        )

    @cached_property
    def offsets(self) -> Tensor:
        """[N]: where the tokens of a position begin."""
        return torch.cumsum(self.counts.long(), 0) - self.counts.long()

    def write(self, folder: Path, key: str) -> None:
        """Keep the targets in `folder`; a disk that refuses costs asking the teacher again after a stop, no more."""
        tensors = {"counts": self.counts, "ids": self.ids, "weights": self.weights, "rest": self.rest}
        try:
            write_checkpoint(folder, f"targets-{key}", tensors, {"first": self.first})
        except OSError as fault:
            say(f"the teacher's targets could not be kept: {fault}")

    @classmethod
    def read(cls, folder: Path, key: str) -> TargetStore | None:
        """What `write` kept under the key; None when it is not there or damaged."""
        path = folder / f"targets-{key}"
        if not path.is_dir():
            return None
        try:
            tensors, state = read_checkpoint(path)
        except ValueError as fault:
            say(f"{path} is refused ({fault}); asking the teacher again")
            return None
        return cls(state["first"], tensors["counts"], tensors["ids"], tensors["weights"], tensors["rest"])


def _gather(ids: Tensor, cells: Tensor) -> Tensor:
    """ids[cells] as int64; torch indexes no 16-bit unsigned tensor."""
    import numpy as np

    return torch.from_numpy(ids.numpy()[cells.numpy()].astype(np.int64))
