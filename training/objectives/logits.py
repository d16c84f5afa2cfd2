"""Logit distillation: the answers' tokens, and what the teacher would have written in their place.

A token with a soft target costs (1 - share) times the cross-entropy of the token itself plus share times temperature
squared times the cross-entropy to the teacher's distribution (Hinton et al. 2015, "Distilling the Knowledge in a
Neural Network"); a token without one its own cross-entropy alone. Where the targets come from: targets.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.records import Json

from ..batch import Batch, target_log_probs
from ..packing import Unit
from ..rows import Row
from ..soft_targets import SoftTargets, soft_cross_entropy
from ..target_store import TargetStore
from .answers import Answers


class TargetSource(Protocol):
    """Where soft targets come from: what a service logged, or a teacher that is asked."""

    def targets(self, rows: Sequence[Row], vocabulary: int, folder: Path) -> tuple[TargetStore, Json]:
        """The rows' targets, and what the manifest says of them. What was dear to make is kept in `folder`."""


class Logits(Answers):
    """Objective `logits`: rows, weights and the normaliser are those of supervised fine-tuning."""

    name = "logits"

    def __init__(self, units: Sequence[Unit], source: TargetSource, *, share: float, temperature: float) -> None:
        super().__init__(units)
        self.source, self.share, self.temperature = source, share, temperature
        self.facts: Json = {}
        self._store: TargetStore | None = None
        self._of: tuple[Batch, SoftTargets] | None = None

    def prepare(self, model: Any, units: Sequence[Unit], folder: Path) -> None:
        """Make the targets of all rows, or take up those that a stopped run has made."""
        rows = list({row.id: row for unit in units for row in unit.rows}.values())
        vocabulary = model.get_output_embeddings().weight.shape[0]
        with torch.random.fork_rng():  # a run that goes on does not load a teacher: its random numbers must not tell
            self._store, self.facts = self.source.targets(rows, vocabulary, folder)

    def scores(self, logits: Tensor, batch: Batch, at: slice) -> Tensor:
        """[n]: less the loss of each learnt token."""
        targets = self._targets(batch).take(at)
        hard = target_log_probs(logits, batch, at)
        soft = soft_cross_entropy(logits, targets, self.temperature)
        return torch.where(targets.usable, (1 - self.share) * hard - self.share * soft, hard)

    def figures(self, scores: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        return {"soft_tokens": (float(self._targets(batch).usable.sum()), float(scores.numel()))}

    def _targets(self, batch: Batch) -> SoftTargets:
        if self._of is None or self._of[0] is not batch:
            if self._store is None:
                raise RuntimeError("Logits.prepare comes before the first step")
            self._of = batch, self._store.of_batch(batch)
        return self._of[1]
