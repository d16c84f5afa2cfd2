"""KTO: single answers that people wanted or did not, no pairs needed (Ethayarajh et al. 2024, equations 7 and 8).

An answer's reward (beta times its log-ratio to where training began) is judged against a reference point: how far the
model has moved on answers that were given to other prompts. Without it, whatever the model says more often would pass
for an improvement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..packing import Unit
from ..rows import Row
from .reference import logprobs, of_rows, reference_logprobs

if TYPE_CHECKING:
    from torch import Tensor

    from ..batch import Batch


@dataclass(frozen=True, slots=True)
class AnswerLogprobs:
    """Log-probabilities of a batch's answers and of the same under the reference, and which are wanted, each [A]."""

    answers: Tensor
    reference: Tensor
    desirable: Tensor  # bool


def reference_point(strangers: Tensor, reference: Tensor) -> Tensor:
    """The estimate of the divergence from the reference, a scalar without gradient, at least 0.

    `strangers` [S] are log-probabilities of answers under prompts that they were not given to, `reference` [S] those
    of the same under the reference. The true divergence is never negative; the estimate may be, hence the bound.
    """
    return (strangers - reference).detach().mean().clamp(min=0)


def answer_losses(answers: AnswerLogprobs, point: Tensor, beta: float, weights: tuple[float, float]) -> Tensor:
    """The loss of every answer [A]; `weights` are those of desirable and of undesirable ones.

    A half of its weight each while the model is its reference; it falls to 0 as wanted answers become likelier than
    the reference point, and others less likely.
    """
    import torch

    above = beta * (answers.answers - answers.reference - point)
    wanted, unwanted = weights
    signed = torch.where(answers.desirable, above, -above)
    weight = torch.where(answers.desirable, wanted, unwanted)
    losses: Tensor = weight * torch.sigmoid(-signed)
    return losses


def balanced_weights(desirable: int, undesirable: int) -> tuple[float, float]:
    """Weights with which both kinds weigh the same in all (equation 8 with ratio 1); the rarer kind's is above 1.

    (1, 1) where there is but one kind.
    """
    if not desirable or not undesirable:
        return 1.0, 1.0
    if desirable < undesirable:
        return undesirable / desirable, 1.0
    return 1.0, desirable / undesirable


def answer_figures(answers: AnswerLogprobs, point: Tensor, beta: float) -> dict[str, Tensor]:
    """What is logged of every answer, each [A], without gradients.

    `reward_accuracy`: 1 where a wanted answer's reward is above the reference point, or an unwanted one's below.
    """
    reward = beta * (answers.answers - answers.reference).detach()
    above = reward - beta * point
    return {
        "reward_accuracy": ((above > 0) == answers.desirable).float() * (above != 0) + 0.5 * (above == 0),
        "reward": reward,
        "logp": answers.answers.detach(),
    }


class WantedAnswers:
    """Objective `kto`. A unit is an answer's row; `desirable` and `strangers` are by its id (`judged_rows`).

    The reference point is that of a whole step: `begin` asks the model for the strangers of its units, without
    gradients, so that a step is the same however it is cut into micro-batches.
    """

    name = "kto"

    def __init__(
        self,
        desirable: Mapping[str, bool],
        strangers: Mapping[str, Row],
        *,
        beta: float,
        weights: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.desirable, self.strangers = desirable, strangers
        self.beta, self.weights = beta, weights
        self._reference: dict[str, float] = {}
        self._point: Tensor | None = None

    def prepare(self, model: Any, units: Sequence[Unit], folder: Path) -> None:
        """Ask the model, which must stand where this phase began, for the reference of every answer and stranger."""
        rows = [row for unit in units for row in (*unit.rows, self.strangers[unit.id])]
        self._reference = reference_logprobs(model, rows, folder)

    def begin(self, model: Any, units: Sequence[Unit]) -> None:
        """Set the reference point of the step (or evaluation) over these units."""
        import torch

        rows = [self.strangers[unit.id] for unit in units]
        before = torch.tensor([self._reference[row.id] for row in rows])
        self._point = reference_point(torch.tensor(logprobs(model, rows)), before)

    def scores(self, logits: Tensor, batch: Batch, at: slice) -> Tensor:
        from ..batch import target_log_probs

        return target_log_probs(logits, batch, at)

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        answers, point = self._answers(scores, batch)
        return answer_losses(answers, point, self.beta, self.weights).sum()

    def normaliser(self, units: Sequence[Unit]) -> float:
        """The number of answers."""
        return float(max(len(units), 1))

    def figures(self, scores: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        answers, point = self._answers(scores, batch)
        found = {"preference_loss": answer_losses(answers, point, self.beta, self.weights)}
        found |= answer_figures(answers, point, self.beta)
        wanted = answers.desirable.float()
        out = {
            name: (float(found[name].sum()), float(wanted.numel())) for name in ("preference_loss", "reward_accuracy")
        }
        for name in ("reward", "logp"):
            out[f"{name}_desirable"] = (float((found[name] * wanted).sum()), float(wanted.sum()))
            out[f"{name}_undesirable"] = (float((found[name] * (1 - wanted)).sum()), float((1 - wanted).sum()))
        return out | {"reference_point": (float(point) * wanted.numel(), float(wanted.numel()))}

    def _answers(self, scores: Tensor, batch: Batch) -> tuple[AnswerLogprobs, Tensor]:
        import torch

        assert self._point is not None, "begin comes before loss"
        wanted = torch.tensor([self.desirable[unit.id] for unit in batch.units], device=scores.device)
        return AnswerLogprobs(batch.row_sums(scores), of_rows(self._reference, batch), wanted), self._point.to(
            scores.device
        )
