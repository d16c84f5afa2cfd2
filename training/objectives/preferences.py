"""DPO: the answer that people preferred becomes likelier than the other, measured against where training began.

Rafailov et al. 2023 (sigmoid), Mitchell 2023 (label smoothing: cDPO), Azar et al. 2023 (IPO, here with log-ratios a
token, as its authors advise and TRL does), Pang et al. 2024 (the likelihood of the chosen answer as a second term).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

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
