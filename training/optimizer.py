"""AdamW over one flat float32 copy of the trained weights, which themselves compute in bf16.

A bf16 weight has eight bits of mantissa: updates below 1/256 of it would be rounded away. The master copy keeps them,
and is part of the state, so that a resumed run goes on with the very same bits. One flat vector makes a step a few
operations instead of some thousand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

Schedule = Literal["cosine", "linear", "constant_with_warmup"]


class MasterAdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); torch's own, or bitsandbytes' paged 8-bit one."""

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        paged_8bit: bool = False,
    ) -> None:
        self.parameters = [each for each in parameters if each.requires_grad]
        self.master = torch.nn.Parameter(torch.cat([p.detach().float().reshape(-1) for p in self.parameters]))
        self.master.grad = torch.zeros_like(self.master)
        self._sizes = [p.numel() for p in self.parameters]
        self._grads = torch.split(self.master.grad, self._sizes)
        self._paged_8bit = paged_8bit
        options: Any = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        if paged_8bit:
            from bitsandbytes import optim

            paged: Any = optim  # untyped in bitsandbytes
            self.inner: Any = paged.PagedAdamW8bit([self.master], **options)
        else:
            self.inner = torch.optim.AdamW([self.master], foreach=False, fused=True, **options)

    def gather(self) -> Tensor:
        """All gradients as one float32 vector (what stands in `.grad` of the parameters, which is cleared)."""
        for parameter, into in zip(self.parameters, self._grads, strict=True):
            if parameter.grad is None:
                into.zero_()
            else:
                into.copy_(parameter.grad.reshape(-1))
                parameter.grad = None
        assert self.master.grad is not None
        return self.master.grad

    def step(self, lr: float, max_grad_norm: float) -> float:
        """One update from the vector that `gather` gave; returns the gradient's norm before clipping."""
        grad = self.master.grad
        assert grad is not None
        norm = float(torch.linalg.vector_norm(grad))
        if norm > max_grad_norm:
            grad.mul_(max_grad_norm / (norm + 1e-6))
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        self.write_back()
        return norm

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the master copy into the parameters."""
        parts = torch.split(self.master, self._sizes)
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))

    def state(self) -> dict[str, Tensor]:
        """The master copy and the moments, by name."""
        moments = self.inner.state.get(self.master, {})
        return {"master": self.master.detach()} | {
            name: value if torch.is_tensor(value) else torch.tensor(value) for name, value in moments.items()
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state` gave, and write the weights back into the parameters."""
        self.master.copy_(state["master"])
        device = self.master.device
        kept: dict[str, Any] = {name: each for name, each in state.items() if name != "master"}
        if kept and self._paged_8bit:
            self._load_paged(kept)
        elif kept:
            self.inner.state[self.master] = {name: each.to(device, copy=True) for name, each in kept.items()}
        self.write_back()

    def _load_paged(self, kept: dict[str, Any]) -> None:
        """Copy moments into the buffers that bitsandbytes makes: a tensor of torch's own would not be paged."""
        self.inner.init_state(self.inner.param_groups[0], self.master, 0, 0)
        own = self.inner.state[self.master]
        for name, each in kept.items():
            if name == "step":
                own[name] = int(each)
            else:
                own[name].copy_(each)


def learning_rate(step: int, steps: int, *, peak: float, warmup_share: float, schedule: Schedule) -> float:
    """The rate of step (from 0) of `steps`: linear from 0 to `peak` over the warm-up, then as the schedule says."""
    warmup = round(warmup_share * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak * (1 - done) if schedule == "linear" else peak
