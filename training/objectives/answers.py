"""Supervised fine-tuning: the cross-entropy of the answers' tokens, each row with its weight.

The sum is divided by the learnt tokens times the mean weight of all training rows, not of the step's: a row of weight
3 then moves the model, on average, as three rows would (dividing by the step's own weights would pull it back to 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..batch import Batch, target_log_probs
from ..packing import Unit


class Answers:
    """Objective `sft`."""

    name = "sft"

    def __init__(self, units: Sequence[Unit]) -> None:
        rows = [row for unit in units for row in unit.rows]
        tokens = sum(row.turn_tokens for row in rows)
        self.mean_weight = sum(row.weight * row.turn_tokens for row in rows) / max(tokens, 1)

    def prepare(self, model: Any, units: Sequence[Unit], folder: Path) -> None:
        """Nothing stays the same."""

    def begin(self, model: Any, units: Sequence[Unit]) -> None:
        """Micro-batches share nothing."""

    scores = staticmethod(target_log_probs)

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        return -(scores * batch.weights).sum()

    def normaliser(self, units: Sequence[Unit]) -> float:
        tokens = sum(row.turn_tokens for unit in units for row in unit.rows)
        return max(tokens, 1) * self.mean_weight

    def figures(self, scores: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        return {}
