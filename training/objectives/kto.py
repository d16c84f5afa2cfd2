"""KTO: single answers that people wanted or did not, no pairs needed (Ethayarajh et al. 2024, equations 7 and 8).

An answer's reward (beta times its log-ratio to where training began) is judged against a reference point: how far the
model has moved on answers that were given to other prompts. Without it, whatever the model says more often would pass
for an improvement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
