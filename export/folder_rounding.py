"""4-bit scales, and rounding that makes up for its own errors.

The scale of a group is chosen among shrunken ranges by the squared error that it leaves, each column weighted by the
mean square of what comes in there (the search of AWQ, Lin et al. 2024, arXiv:2306.00978, for the range alone). With
the whole second moment of the inputs, columns are then rounded one after the other, the most important first, and what
each rounding changes in the layer's output is taken back by the columns that are still to come (GPTQ, Frantar et al.
2023, arXiv:2210.17323, with the groups where they stand, so that the file holds no order of columns).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.errors import PotstillError

if TYPE_CHECKING:
    import torch

SHRUNK = tuple(1.0 - step / 50 for step in range(16))  # ranges that are tried, as shares of the largest value
INT4_MOST = 7.5  # a range of [-8, 7] is centred on half a step, as compressed-tensors scales it
LOWEST, HIGHEST = -8, 7
DAMPING = 0.01  # of the mean diagonal, as in the paper: a column that never saw anything has no inverse
BLOCK = 128  # columns whose corrections reach the rest in one product


def group_scales(weight: torch.Tensor, group: int, importance: torch.Tensor | None = None) -> torch.Tensor:
    """The scale of every group, (rows, columns / group) in bf16, that leaves the least weighted squared error.

    `importance` (columns,) weighs the columns; None weighs them alike.
    """
    import torch

    grouped = weight.float().reshape(weight.shape[0], -1, group)
    weighed = torch.ones(weight.shape[1]) if importance is None else importance.float()
    weighed = weighed.reshape(-1, group)
    largest = grouped.abs().amax(dim=2, keepdim=True) / INT4_MOST
    best = stored(largest)
    least = torch.full_like(largest, torch.inf)
    for share in SHRUNK:
        scale = stored(largest * share)
        wide = scale.float()
        error = grouped - (grouped / wide).round().clamp(LOWEST, HIGHEST) * wide
        lost = (error.square() * weighed).sum(dim=2, keepdim=True)
        better = lost < least
        best, least = torch.where(better, scale, best), torch.where(better, lost, least)
    return best.squeeze(2)


def stored(scale: torch.Tensor) -> torch.Tensor:
    """A scale as it will be read back: in bf16, and never zero."""
    import torch

    return scale.clamp(min=torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)


def compensated(weight: torch.Tensor, scale: torch.Tensor, group: int, moment: torch.Tensor) -> torch.Tensor:
    """The weight (rows, columns) in float32 with every value a whole multiple, -8 to 7, of its group's scale.

    `moment` (columns, columns) is E[x x^T] of the inputs. Raises PotstillError when it is no such thing.
    """
    import torch

    order = moment.diagonal().argsort(descending=True)
    rest = weight.float()[:, order].clone()
    steps = scale.float().repeat_interleave(group, dim=1)[:, order]
    upper = _inverse_factor(moment[order][:, order])
    done = torch.empty_like(rest)
    for start in range(0, rest.shape[1], BLOCK):
        end = min(start + BLOCK, rest.shape[1])
        block, errors = rest[:, start:end].clone(), torch.empty(rest.shape[0], end - start)
        for at in range(end - start):
            column, step = block[:, at], steps[:, start + at]
            rounded = (column / step).round().clamp(LOWEST, HIGHEST) * step
            errors[:, at] = (column - rounded) / upper[start + at, start + at]
            block[:, at:] -= torch.outer(errors[:, at], upper[start + at, start + at : end])
            done[:, start + at] = rounded
        rest[:, end:] -= errors @ upper[start:end, end:]
    return done[:, order.argsort()]


def _inverse_factor(moment: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped moment: row i corrects the columns after i."""
    import torch

    damped = moment.double() + torch.eye(len(moment), dtype=torch.float64) * DAMPING * moment.diagonal().mean()
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    except RuntimeError as fault:
        raise PotstillError(
            f"export: the inputs of a layer are not finite numbers ({fault}); the student is broken, train again"
        ) from fault
    return factor
