"""AdamW with float32 master weights for parameters that compute in bf16.

A bf16 weight has eight bits of mantissa: updates below 1/256 of it would be rounded away. The master copy keeps them,
and is part of the state, so that a resumed run continues with the very same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class MasterAdamW(torch.optim.Optimizer):
    """Decoupled weight decay Adam (Loshchilov and Hutter 2019); moments and weights in float32."""

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["master"] = parameter.detach().to(torch.float32, copy=True)
                    state["mean"] = torch.zeros_like(state["master"])
                    state["square"] = torch.zeros_like(state["master"])
                state["step"] += 1
                step = state["step"].item()
                grad = parameter.grad.to(torch.float32)
                state["mean"].lerp_(grad, 1 - beta1)
                state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                denominator = (state["square"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
                state["master"].mul_(1 - group["lr"] * group["weight_decay"])
                state["master"].addcdiv_(state["mean"], denominator, value=-group["lr"] / (1 - beta1**step))
                parameter.copy_(state["master"])
        return loss

    def load_state_dict(self, state_dict: Any) -> None:
        """Restore the state in float32: the base class would cast it to the parameters' bf16."""
        super().load_state_dict(state_dict)
        saved = state_dict["state"]
        ordered = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(ordered):
            if index in saved:
                self.state[parameter] = {
                    name: value.clone().to(torch.float32) if torch.is_tensor(value) else value
                    for name, value in saved[index].items()
                }
