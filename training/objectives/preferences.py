"""DPO: the answer that people preferred becomes likelier than the other, measured against where training began.

Rafailov et al. 2023 (sigmoid), Mitchell 2023 (label smoothing: cDPO), Azar et al. 2023 (IPO, here with log-ratios a
token, as its authors advise and TRL does), Pang et al. 2024 (the likelihood of the chosen answer as a second term).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..packing import Unit
from .reference import of_rows, reference_logprobs

if TYPE_CHECKING:
    from torch import Tensor

    from ..batch import Batch

DpoLoss = Literal["sigmoid", "ipo"]


@dataclass(frozen=True, slots=True)
class PairLogprobs:
    """Log-probabilities of the pairs of a batch and their answers' lengths in tokens, each [P]."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


def preference_losses(
    pairs: PairLogprobs, beta: float, *, loss: DpoLoss = "sigmoid", label_smoothing: float = 0.0
) -> Tensor:
    """The loss of every pair [P]. It is ln 2 (sigmoid) or 1 / (2 beta)^2 (ipo) while the model is its reference.

    `beta` holds the model near the reference: the larger, the nearer. `label_smoothing` is the share of pairs that are
    taken to be the wrong way round (sigmoid alone).
    """
    import torch

    chosen, rejected = pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected
    if loss == "ipo":
        apart: Tensor = chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens
        return (apart - 1 / (2 * beta)) ** 2
    logsigmoid = torch.nn.functional.logsigmoid
    margin = beta * (chosen - rejected)
    right, wrong = -logsigmoid(margin), -logsigmoid(-margin)
    smoothed: Tensor = (1 - label_smoothing) * right + label_smoothing * wrong
    return smoothed


def likelihood_losses(pairs: PairLogprobs) -> Tensor:
    """The cross-entropy of the chosen answers, a token's mean in each [P]: what `sft_weight` adds."""
    return -pairs.chosen / pairs.chosen_tokens


def pair_figures(pairs: PairLogprobs, beta: float) -> dict[str, Tensor]:
    """What is logged of every pair, each [P], without gradients.

    Rewards are beta times the log-ratio to the reference; `reward_accuracy` is 1 where the chosen answer's is larger,
    a half where they are equal (as before the first step).
    """
    chosen = beta * (pairs.chosen - pairs.reference_chosen).detach()
    rejected = beta * (pairs.rejected - pairs.reference_rejected).detach()
    return {
        "reward_accuracy": (chosen > rejected).float() + 0.5 * (chosen == rejected).float(),
        "reward_margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "logp_chosen": pairs.chosen.detach(),
        "logp_rejected": pairs.rejected.detach(),
    }


class PreferredAnswers:
    """Objective `dpo`. A unit is a pair: the chosen answer's row, then the rejected one's (judged_rows.pair_units)."""

    name = "dpo"

    def __init__(
        self, *, beta: float, loss: DpoLoss = "sigmoid", label_smoothing: float = 0.0, sft_weight: float = 0.0
    ) -> None:
        self.beta, self.kind, self.label_smoothing, self.sft_weight = beta, loss, label_smoothing, sft_weight
        self._reference: dict[str, float] = {}

    def prepare(self, model: Any, units: Sequence[Unit], folder: Path) -> None:
        """Ask the model, which must stand where this phase began, for the reference of every answer."""
        self._reference = reference_logprobs(model, [row for unit in units for row in unit.rows], folder)

    def begin(self, model: Any, units: Sequence[Unit]) -> None:
        """Nothing is asked of the model before a step."""

    def scores(self, logits: Tensor, batch: Batch, at: slice) -> Tensor:
        from ..batch import target_log_probs

        return target_log_probs(logits, batch, at)

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        pairs = self._pairs(scores, batch)
        losses = preference_losses(pairs, self.beta, loss=self.kind, label_smoothing=self.label_smoothing)
        if self.sft_weight:
            losses = losses + self.sft_weight * likelihood_losses(pairs)
        return losses.sum()

    def normaliser(self, units: Sequence[Unit]) -> float:
        """The number of pairs."""
        return float(max(len(units), 1))

    def figures(self, scores: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        pairs = self._pairs(scores, batch)
        losses = preference_losses(pairs, self.beta, loss=self.kind, label_smoothing=self.label_smoothing)
        found = {"preference_loss": losses.detach()} | pair_figures(pairs, self.beta)
        return {name: (float(each.sum()), float(each.numel())) for name, each in found.items()}

    def _pairs(self, scores: Tensor, batch: Batch) -> PairLogprobs:
        ours, before = batch.row_sums(scores), of_rows(self._reference, batch)
        lengths = ours.new_tensor([row.supervised_tokens for unit in batch.units for row in unit.rows])
        return PairLogprobs(ours[::2], ours[1::2], before[::2], before[1::2], lengths[::2], lengths[1::2])
