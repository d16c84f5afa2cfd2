"""What is learnt: one file an objective, all with the same three questions.

    scores(logits [n, V], batch, at) -> [n]      how good each learnt token is (usually its log-probability)
    loss(scores [N], batch) -> scalar            what is minimised, summed over the micro-batch
    normaliser(units) -> float                   what the sum over a whole step is divided by

so that a step gives the same gradient however it is cut into micro-batches or spread over processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from ..batch import Batch
    from ..packing import Unit


class Objective(Protocol):
    """What a training step minimises."""

    name: str

    def prepare(self, model: Any, units: Sequence[Unit], folder: Path) -> None:
        """Compute once, before the first step, what stays the same for the whole run; keep it in `folder`.

        Called before a checkpoint is taken up: the model stands where this phase of training began.
        """

    def begin(self, model: Any, units: Sequence[Unit]) -> None:
        """Ask the model, without gradients, what all micro-batches of the step (or evaluation) of `units` share."""

    def scores(self, logits: Tensor, batch: Batch, at: slice) -> Tensor: ...

    def loss(self, scores: Tensor, batch: Batch) -> Tensor: ...

    def normaliser(self, units: Sequence[Unit]) -> float: ...

    def figures(self, scores: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        """Further figures of a micro-batch as (sum, count) by name, for the log."""
        ...


@runtime_checkable
class Generates(Protocol):
    """An objective whose steps learn from answers that the model writes at that step."""

    def generate(self, model: Any, units: Sequence[Unit], step: int) -> list[Unit]:
        """The units of a step (from 0) as they are learnt from; the same at every call with the same weights."""
        ...
