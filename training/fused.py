"""A layer's elementwise work as compiled loops: for long trainings on a processor.

Norms, the gated activation, rotary embeddings and the scores of learnt tokens are a dozen small operations each, every
one of which reads and writes its whole tensor; where matrix products are fast they take more than half of a step.
`torch.compile` makes one loop of each. Only these are compiled: around them the rows differ at every step, which no
compiled graph survives. The results are the same up to rounding (a test holds them together).

Only packed rows go through them (`packed`), as [tokens, width]: of each loop one variant is compiled whatever came
first, so that a resumed run, which begins elsewhere, has the same bits. Generation keeps the operations that it had.

Compiling needs a C++ compiler and takes some twenty seconds, so that short trainings go without (`worth_it`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from potstill.progress import say

from .lean import eps_of, silu_class, times

WORTH_TOKENS = 200_000  # of all rows and epochs: at some hundred a second these save what the compiler takes
VARIANTS = 64  # of a loop in one process, of several models: past so many torch would go on uncompiled without a word


def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * inverse * weight).to(x.dtype), inverse


def _norm_to_input(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    normed, to_normed = x.float() * inverse, grad.float() * weight
    return ((to_normed - normed * (to_normed * normed).mean(-1, keepdim=True)) * inverse).to(x.dtype)


def _norm_to_weight(grad: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
    return (grad.float() * x.float() * inverse).sum(0)


def _gate(gate: Tensor, up: Tensor) -> Tensor:
    wide = gate.float()
    return (wide * torch.sigmoid(wide) * up.float()).to(gate.dtype)


def _gate_back(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    wide, grad_wide = gate.float(), grad.float()
    sigmoid = torch.sigmoid(wide)
    to_gate = grad_wide * up.float() * sigmoid * (1 + wide * (1 - sigmoid))
    return to_gate.to(gate.dtype), (grad_wide * wide * sigmoid).to(up.dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    turned = first * cos[..., :half] - second * sin[..., :half], second * cos[..., half:] + first * sin[..., half:]
    return torch.cat(turned, -1)


def _turn_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = grad.shape[-1] // 2
    first, second = grad[..., :half], grad[..., half:]
    back = first * cos[..., :half] + second * sin[..., half:], second * cos[..., half:] - first * sin[..., :half]
    return torch.cat(back, -1)


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = logits.float()
    most = wide.amax(-1, keepdim=True)
    total = (wide - most).exp().sum(-1, keepdim=True).log() + most
    chosen = wide.gather(1, targets[:, None])
    return (chosen - total)[:, 0], total, (chosen == most)[:, 0]


def _score_back(grad: Tensor, logits: Tensor, total: Tensor, targets: Tensor) -> Tensor:
    shares = (logits.float() - total).exp()
    tokens = torch.arange(logits.shape[1], device=logits.device)
    return (grad[:, None] * ((tokens == targets[:, None]).float() - shares)).to(logits.dtype)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    return torch.compile(function, dynamic=True)


def _flat(x: Tensor) -> Tensor:
    """[tokens, width]: a loop of two dimensions alone."""
    return x.detach().reshape(-1, x.shape[-1])


class _Norm(torch.autograd.Function):
    """RMSNorm of x [..., H] with weight [H] in float32; the weight may be trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        flat, weight = _flat(x), weight.detach()
        y, inverse = _compiled(_norm)(flat, weight, eps)
        ctx.save_for_backward(flat, weight, inverse)
        return y.view(x.shape)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        flat = _flat(grad)
        to_weight = _compiled(_norm_to_weight)(flat, x, inverse) if ctx.needs_input_grad[1] else None
        return _compiled(_norm_to_input)(flat, x, weight, inverse).view(grad.shape), to_weight, None


class _Gate(torch.autograd.Function):
    """silu(gate) * up, keeping the two inputs alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        flat = _flat(gate), _flat(up)
        ctx.save_for_backward(*flat)
        return _compiled(_gate)(*flat).view(gate.shape)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        to_gate, to_up = _compiled(_gate_back)(_flat(grad), *ctx.saved_tensors)
        return to_gate.view(grad.shape), to_up.view(grad.shape)


class _Rotary(torch.autograd.Function):
    """Queries and keys [1, heads, T, D] turned by cos and sin [1, 1, T, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        ctx.save_for_backward(cos, sin)
        turn = _compiled(_turn)
        return turn(q.detach(), cos, sin), turn(k.detach(), cos, sin)

    @staticmethod
    def backward(ctx: Any, to_q: Tensor, to_k: Tensor) -> Any:
        back, saved = _compiled(_turn_back), ctx.saved_tensors  # once: recomputed, they are given out a single time
        return back(to_q, *saved), back(to_k, *saved), None, None


class _Scores(torch.autograd.Function):
    """[n] log-probabilities (float32) of targets [n] under logits [n, vocabulary]; whether each is the likeliest."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Any:
        logits = logits.detach()
        found, total, first = _compiled(_score)(logits, targets)
        ctx.save_for_backward(logits, total, targets)
        ctx.mark_non_differentiable(first)
        return found, first

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        logits, total, targets = ctx.saved_tensors
        return _compiled(_score_back)(grad, logits, total, targets), None


def target_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability [n] of each target, differentiable, and whether no token is likelier [n]."""
    return _Scores.apply(logits, targets)  # type: ignore[no-any-return, no-untyped-call]


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """transformers' apply_rotary_pos_emb: q, k [1, heads, T, D], cos and sin [1, T, D]."""
    return _Rotary.apply(q, k, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim))  # type: ignore[no-any-return, no-untyped-call]


def worth_it(tokens: int) -> bool:
    """Whether a training on so many tokens gains more than compiling costs, and this machine can compile."""
    return tokens >= WORTH_TOKENS and can_compile()


@cache
def can_compile() -> bool:
    """Whether a compiler is found that makes a working loop; the first call takes seconds."""
    try:
        probe = torch.linspace(-1, 1, 32)
        return torch.allclose(_compiled(_gate)(probe, probe), _gate(probe, probe), atol=1e-6)
    except Exception as fault:  # whatever is missing: a compiler, its headers, a place to write
        reason = str(fault).strip().partition("\n")[0][:160]
        say(f"train.compile: this machine cannot compile ({reason}); training goes on without, more slowly")
        return False


def fuse(inner: Any) -> int:
    """Put the loops above into a transformers model (after make_lean); returns how many modules were changed.

    What does not give the same results when tried stays as it is.
    """
    changed = 0
    for module in inner.modules():
        if hasattr(module, "gate_proj") and isinstance(getattr(module, "act_fn", None), torch.nn.SiLU | silu_class()):
            module.forward = _gated(module)
            changed += 1
        elif type(module).__name__.endswith("RMSNorm") and (plus := times(module)) is not None:
            module.forward = _normed(module, plus)
            changed += 1
    inner.potstill_fused = True
    inner.potstill_rotary = _rotary_place(inner)
    return changed


_packing = False  # whether packed rows are what goes through a model just now


def _gated(module: Any) -> Any:
    before = module.forward

    def forward(x: Tensor) -> Tensor:
        if not _packing:
            return before(x)  # type: ignore[no-any-return]
        return module.down_proj(_Gate.apply(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-any-return, no-untyped-call]

    return forward


def _normed(module: Any, plus: float) -> Any:
    eps = eps_of(module)
    frozen = None if module.weight.requires_grad else module.weight.detach().float() + plus
    before = module.forward

    def forward(x: Tensor) -> Tensor:
        if not _packing:
            return before(x)  # type: ignore[no-any-return]
        weight = module.weight.float() + plus if frozen is None else frozen
        return _Norm.apply(x, weight, eps)  # type: ignore[no-any-return, no-untyped-call]

    return forward


@contextmanager
def packed(inner: Any) -> Iterator[None]:
    """Within, a fused model computes by the loops; queries and keys too, by a function of transformers' module."""
    global _packing
    place, before = getattr(inner, "potstill_rotary", None), _packing
    theirs = getattr(place, "apply_rotary_pos_emb", None)

    def turned(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> Any:
        whole = cos.shape[-1] == q.shape[-1] and not rest
        return (_rotary if whole else theirs)(q, k, cos, sin, *rest, **named)  # type: ignore[misc]

    _packing = getattr(inner, "potstill_fused", False)
    try:
        if place is not None:
            place.apply_rotary_pos_emb = turned
        yield
    finally:
        _packing = before
        if place is not None:
            place.apply_rotary_pos_emb = theirs


def _rotary_place(inner: Any) -> Any:
    """The transformers module whose apply_rotary_pos_emb turns this model's queries and keys as ours does, or None."""
    layers = getattr(inner.get_decoder(), "layers", None) or [None]
    attention = getattr(layers[0], "self_attn", None)
    place = sys.modules.get(type(attention).__module__)
    theirs = getattr(place, "apply_rotary_pos_emb", None)
    head = getattr(attention, "head_dim", None)
    if theirs is None or not isinstance(head, int):
        return None
    draw = torch.Generator().manual_seed(0)
    shapes = (1, 2, 3, head), (1, 1, 3, head), (1, 3, head), (1, 3, head)
    q, k, cos, sin = (torch.randn(*shape, generator=draw) for shape in shapes)
    try:
        same = all(
            torch.allclose(a, _turn(b, cos.unsqueeze(1), sin.unsqueeze(1)), atol=1e-5)
            for a, b in zip(theirs(q, k, cos, sin), (q, k), strict=True)
        )
    except (TypeError, ValueError, RuntimeError):
        same = False
    return place if same else None
