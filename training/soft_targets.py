"""A teacher's distribution over the next token, a few tokens of it: drawn, kept, and what the student loses against it.

Of each distribution p the `head` likeliest tokens are kept with their probabilities; what is left over is either

- one bucket ("rest"): the student is taught how much mass lies outside the head, not where. Biased, exact as the head
  becomes the vocabulary; all that a service's `top_logprobs` allow; or
- sampled: `draws` tokens drawn from the tail with replacement, each weighing tail mass * count / draws. Weights are
  unbiased for p, and the gradient of the cross-entropy is linear in them, so that it is that of the whole distribution
  in expectation. With `head` 0 this is Random Sampling Knowledge Distillation (Anshumann et al. 2025, "Sparse Logit
  Sampling: Accelerating Knowledge Distillation in LLMs", ACL, arXiv 2503.16870), where the truncated top-k is shown to
  be biased; a head that is counted exactly (Rao-Blackwell) only takes variance away.

A `proposal` temperature other than 1 draws from p^(1/proposal); each draw then weighs p/q, still unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """Of N positions up to m tokens each: `ids` [N, m] int64 (NO_TOKEN: none), `weights` [N, m] and `rest` [N] float32.

    A position's weights and its rest sum to 1, in expectation where they are drawn. A position with neither has no
    soft target: `usable` is false there.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    rest: torch.Tensor

    @property
    def usable(self) -> torch.Tensor:
        """Mask [N] of the positions that have a target."""
        return (self.ids != NO_TOKEN).any(1)

    def take(self, positions: Any) -> SoftTargets:
        return SoftTargets(self.ids[positions], self.weights[positions], self.rest[positions])


def draw(
    log_probs: torch.Tensor, *, head: int, draws: int, generator: torch.Generator, proposal: float = 1.0
) -> SoftTargets:
    """Targets of distributions given as log-probabilities [N, V]; the rest is one bucket when `draws` is 0."""
    import torch

    log_probs = log_probs.float()
    head = min(head, log_probs.shape[1])
    best = log_probs.topk(head, dim=1)
    ids, weights = best.indices, best.values.exp()
    rest = (1 - weights.sum(1)).clamp_min(0.0)
    if not draws or head == log_probs.shape[1]:
        return SoftTargets(ids, weights, rest)
    tail = log_probs.scatter(1, ids, float("-inf"))
    proposed = torch.softmax(tail / proposal, 1)
    drawn = torch.multinomial(proposed, draws, replacement=True, generator=generator)
    each = tail.gather(1, drawn).exp() / proposed.gather(1, drawn) / draws
    summed = torch.zeros_like(log_probs).scatter_add_(1, drawn, each)
    different = int((summed > 0).sum(1).max())
    of_tail = summed.topk(different, dim=1)
    tail_ids = of_tail.indices.masked_fill(of_tail.values == 0, NO_TOKEN)
    return SoftTargets(torch.cat([ids, tail_ids], 1), torch.cat([weights, of_tail.values], 1), torch.zeros_like(rest))


def stack(parts: Sequence[SoftTargets]) -> SoftTargets:
    """Positions behind each other, padded to the most tokens of any."""
    import torch
    from torch.nn.functional import pad

    most = max((each.ids.shape[1] for each in parts), default=1)
    return SoftTargets(
        torch.cat([pad(each.ids, (0, most - each.ids.shape[1]), value=NO_TOKEN) for each in parts]),
        torch.cat([pad(each.weights, (0, most - each.weights.shape[1])) for each in parts]),
        torch.cat([each.rest for each in parts]),
    )


def nothing(positions: int) -> SoftTargets:
    """Targets of positions of which nothing is known."""
    import torch

    return SoftTargets(torch.full((positions, 1), NO_TOKEN), torch.zeros((positions, 1)), torch.zeros(positions))


def soft_cross_entropy(logits: torch.Tensor, targets: SoftTargets, temperature: float = 1.0) -> torch.Tensor:
    """Cross-entropy [N] of the student's logits [N, V] to the targets, at a temperature; 0 where there is no target.

    Times temperature squared, so that gradients keep their size (Hinton et al. 2015, section 2). Less the teacher's
    entropy, which no gradient sees, it is the forward Kullback-Leibler divergence.
    """
    import torch

    log_student = torch.log_softmax(logits.float() / temperature, 1)
    known = targets.ids != NO_TOKEN
    at = log_student.gather(1, targets.ids.clamp_min(0))
    named = -(targets.weights * at.masked_fill(~known, 0.0)).sum(1)
    # log(1 - what the student gives the named tokens), safe in value and gradient where that is nearly everything
    outside = (1 - (at.exp() * known).sum(1)).clamp_min(1e-6).log()
    loss = named - torch.where(targets.rest > 0, targets.rest * outside, 0.0)
    return temperature**2 * loss * targets.usable
