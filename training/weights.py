"""The weights that training moves: what checkpoints keep, and where the model stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def trained_weights(model: Any) -> dict[str, Tensor]:
    """The model's parameters that have gradients, by name, in the model's order; the others are the base's."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def put_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy kept weights into the model; raises KeyError for one that was not kept."""
    import torch

    with torch.no_grad():
        for name, parameter in trained_weights(model).items():
            parameter.copy_(tensors[name])


def device_of(model: Any) -> str:
    """Where the trained weights stand, as `cpu` or `cuda:0`."""
    return str(next(iter(trained_weights(model).values())).device)
