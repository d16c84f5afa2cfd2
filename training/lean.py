"""The same model with fewer operations: for CPU training with a frozen base and plain LoRA.

Three things are put in place of what transformers and peft do one small operation at a time; the results are the same
up to bf16 rounding (a test holds them together), parameters and their names stay where they are:

- linear layers that read the same input (q, k, v; gate, up) are one matrix product, forward and backward, with all
  their LoRA products beside it and the input kept once;
- RMSNorm and the gated activation keep two tensors for the backward pass instead of a dozen.

Frozen weights get no gradient anywhere. An NF4 base is dequantised once, into bf16: its values stay NF4's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

OURS = (__name__, f"{__package__}.fused")  # where functions come from that stand in a module's place
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _LoraLinears(torch.autograd.Function):
    """[y_i] for y_i = x W_i^T + s_i (x A_i^T) B_i^T; `w` holds all W_i, x is [T, in]. No gradient for W.

    Arguments after the sizes: A_1 .. A_n, B_1 .. B_n, each [rank, in] and [out, rank].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, outs: Sequence[int], scales: Sequence[float],
        *factors: Tensor,
    ) -> Any:  # fmt: skip
        n = len(outs)
        downs, ups = factors[:n], factors[n:]
        down = torch.cat(downs) if n > 1 else downs[0]
        low = torch.nn.functional.linear(x, down)
        lows = torch.split(low, [each.shape[0] for each in downs], 1)
        made = torch.nn.functional.linear(x, w, bias)
        ys = list(torch.split(made, list(outs), 1))
        for y, part, up, scale in zip(ys, lows, ups, scales, strict=True):
            y.addmm_(part, up.t(), alpha=scale)
        ctx.save_for_backward(x, w, low, *factors)
        ctx.outs, ctx.scales = outs, scales
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, w, low, *factors = ctx.saved_tensors
        n = len(ctx.outs)
        downs, ups = factors[:n], factors[n:]
        ranks = [each.shape[0] for each in downs]
        to_low = low.new_empty(low.shape)
        to_ups = []
        for grad, part, into, up, scale in zip(
            grads, torch.split(low, ranks, 1), torch.split(to_low, ranks, 1), ups, ctx.scales, strict=True
        ):
            into.copy_(grad @ up).mul_(scale)
            to_ups.append((grad.t() @ part).mul_(scale))
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (torch.cat(grads, 1) if n > 1 else grads[0]) @ w
            to_x.addmm_(to_low, torch.cat(downs) if n > 1 else downs[0])
        to_downs = torch.split(to_low.t() @ x, ranks)
        return (to_x, None, None, None, None, *to_downs, *to_ups)


class _Norm(torch.autograd.Function):
    """RMSNorm with a frozen weight: x / sqrt(mean(x^2) + eps) * weight, in float32 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze_(-1)
        ctx.save_for_backward(x, weight, inverse)
        return wide.mul_(inverse).mul_(weight).to(x.dtype) if wide is not x else (wide * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        normed = x.float() * inverse
        to_normed = grad.float() * weight
        share = torch.linalg.vecdot(to_normed, normed).div_(x.shape[-1]).unsqueeze_(-1)
        return to_normed.addcmul_(normed, share, value=-1).mul_(inverse).to(x.dtype), None, None


class _SiluGate(torch.autograd.Function):
    """silu(gate) * up, keeping the two inputs alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        to_up = torch.nn.functional.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), to_up


class LoraGroup:
    """Linear layers that are called with the same input, one after the other: the first call computes all."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        bases = [each.get_base_layer() for each in self.layers]
        self.outs = [_weight(each).shape[0] for each in bases]
        self.weight = torch.cat([_weight(each) for each in bases]) if len(bases) > 1 else _weight(bases[0])
        self.bias = None
        if any(each.bias is not None for each in bases):
            parts = [
                each.bias.detach() if each.bias is not None else self.weight.new_zeros(out)
                for each, out in zip(bases, self.outs, strict=True)
            ]
            self.bias = torch.cat(parts)
        for each, part in zip(bases, torch.split(self.weight, self.outs), strict=True):
            if not _is_quantised(each):
                each.weight.data = part  # a view: the weights stand in memory once
        self._input: Any = None
        self._made: list[Tensor] = []

    def call(self, which: int, x: Tensor) -> Tensor:
        """The output of layer `which` for x [..., in]."""
        if x is not self._input or not self._made:
            self._input, self._made = x, list(self._all(x))
        found = self._made[which]
        if which == len(self.layers) - 1:
            self._input, self._made = None, []
        return found

    def _all(self, x: Tensor) -> Sequence[Tensor]:
        flat = x.reshape(-1, x.shape[-1])
        if self.layers[0].disable_adapters:
            ys: Any = torch.split(torch.nn.functional.linear(flat, self.weight, self.bias), self.outs, 1)
        else:
            names = [each.active_adapters[0] for each in self.layers]
            pairs = list(zip(self.layers, names, strict=True))
            ys = _LoraLinears.apply(
                flat, self.weight, self.bias, self.outs, [each.scaling[name] for each, name in pairs],
                *[each.lora_A[name].weight for each, name in pairs],
                *[each.lora_B[name].weight for each, name in pairs],
            )  # type: ignore[no-untyped-call]  # fmt: skip
        return [y.view(*x.shape[:-1], -1) for y in ys]


def _is_quantised(linear: Any) -> bool:
    return hasattr(linear.weight, "quant_state")


def _weight(linear: Any) -> Tensor:
    """A frozen linear layer's weight [out, in]; NF4 is dequantised to bf16."""
    if not _is_quantised(linear):
        return linear.weight.detach()  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_4bit

    found: Tensor = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    return found.to(torch.bfloat16)


def make_lean(model: Any) -> int:
    """Put the operations above into a peft model with plain LoRA adapters; returns the number of layers changed.

    Layers that it does not know (DoRA, dropout on the adapter's input, other names) stay as they are.
    """
    changed = 0
    for module in model.modules():
        for names in TOGETHER:
            layers = [getattr(module, name, None) for name in names]
            if all(_is_plain_lora(each) for each in layers):
                changed += _group(layers)
        for name in ("o_proj", "down_proj"):
            if _is_plain_lora(getattr(module, name, None)):
                changed += _group([getattr(module, name)])
        if hasattr(module, "gate_proj") and isinstance(getattr(module, "act_fn", None), torch.nn.SiLU | silu_class()):
            module.forward = _gated(module)
        if type(module).__name__.endswith("RMSNorm") and _is_known_norm(module):
            module.forward = _normed(module)
    return changed


@contextmanager
def as_loaded(model: Any) -> Iterator[None]:
    """Within, the model computes as it was before `make_lean` and `fuse`."""
    replaced = [
        (module, module.__dict__.pop("forward"))
        for module in model.modules()
        if getattr(module.__dict__.get("forward"), "__module__", None) in OURS
    ]
    try:
        yield
    finally:
        for module, forward in replaced:
            module.forward = forward


def _group(layers: Sequence[Any]) -> int:
    group = LoraGroup(layers)
    for at, layer in enumerate(layers):
        layer.forward = lambda x, *_, at=at, **__: group.call(at, x)
    return len(layers)


def _is_plain_lora(layer: Any) -> bool:
    from peft.tuners.lora import LoraLayer

    if not isinstance(layer, LoraLayer) or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    if name not in layer.lora_A or getattr(layer, "use_dora", {}).get(name):
        return False
    dropout = layer.lora_dropout[name] if name in layer.lora_dropout else torch.nn.Identity()
    return isinstance(dropout, torch.nn.Identity) and not layer.get_base_layer().weight.requires_grad


def silu_class() -> type:
    """transformers' own class of the activation, beside torch's."""
    from transformers.activations import SiLUActivation

    return SiLUActivation


def _gated(module: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        return module.down_proj(_SiluGate.apply(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-any-return, no-untyped-call]

    return forward


def _is_known_norm(module: Any) -> bool:
    """Whether its weight is frozen and multiplies as it is known to; keeps what it multiplies by."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.requires_grad or (plus := times(module)) is None:
        return False
    module.potstill_scale = weight.detach().float() + plus
    return True


def times(norm: Any) -> float | None:
    """What an RMSNorm adds to its weight before it multiplies by it, found by trying: 0 (Llama, Qwen) or 1 (Gemma).

    None for one that does something else.
    """
    weight = getattr(norm, "weight", None)
    if weight is None or weight.dim() != 1:
        return None
    probe = torch.linspace(-2, 2, weight.numel(), device=weight.device, dtype=torch.float32)[None]
    with torch.no_grad():
        found = type(norm).forward(norm, probe).float()
        for plus in (0.0, 1.0):
            expected = probe * torch.rsqrt(probe.square().mean() + eps_of(norm)) * (weight.float() + plus)
            if torch.allclose(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max())):
                return plus
    return None


def eps_of(norm: Any) -> float:
    """What an RMSNorm adds to the mean square."""
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6)))


def _normed(module: Any) -> Any:
    scale, eps = module.potstill_scale, eps_of(module)

    def forward(x: Tensor) -> Tensor:
        return _Norm.apply(x, scale, eps)  # type: ignore[no-any-return, no-untyped-call]

    return forward
