"""Kernels for a CUDA device, each behind a setting: FlashAttention inside rows, Liger's fused layers, compiled layers.

All are off by default: the results are the same up to rounding, and each asks for a package or for minutes at the
start. On a processor lean.py and fused.py take their place.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError
from potstill.progress import say

from .attention import FLASH

if TYPE_CHECKING:
    from .run import Settings


def put_in(settings: Settings, model: Any) -> None:
    """Put what the recipe asks for into the model; raises PotstillError for what is not installed."""
    import torch

    if not torch.cuda.is_available():
        if settings.attention != "rows" or settings.kernels != "none":
            say("train.attention, train.kernels: for a CUDA device; not used on a processor")
        return
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if settings.attention == "flash_attention_2":
        use_flash(inner)
    if settings.kernels == "liger":
        use_liger(inner)
    if settings.compile is True:
        compile_layers(inner)


def use_flash(inner: Any) -> None:
    """Attend inside rows by FlashAttention's kernel for rows of different lengths (Dao 2023, arXiv:2307.08691)."""
    if find_spec("flash_attn") is None:
        raise PotstillError("train.attention: flash_attention_2 needs the package flash-attn; install it, or take rows")
    inner.potstill_rows = FLASH


def use_liger(inner: Any) -> None:
    """Liger's RMSNorm, rotary embedding and gated activation (Hsu et al. 2024, arXiv:2410.10989); the loss is ours."""
    if find_spec("liger_kernel") is None:
        raise PotstillError("train.kernels: liger needs the package liger-kernel; install it, or take none")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(
        model=inner, rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )


def compile_layers(inner: Any, backend: str = "inductor") -> int:
    """Compile the gated layers for any number of tokens; returns how many.

    Attention stays as it is: the rows of a batch differ at every step, which no compiled graph survives.
    """
    layers = inner.get_decoder().layers
    for layer in layers:
        layer.mlp.compile(dynamic=True, backend=backend)
    return len(layers)
