"""The student: a base, quantised or not, with an adapter on every linear layer, or all of its weights to be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from potstill import models
from potstill.progress import say

from .lean import make_lean

Adapter = Literal["lora", "rslora", "dora"]


def student(
    base: Path,
    *,
    quantization: Literal["none", "nf4"],
    rank: int,
    alpha: int,
    dropout: float,
    seed: int,
    variant: Adapter = "lora",
    lean: bool = True,
) -> Any:
    """The base with frozen weights and a fresh adapter (LoRA, Hu et al. 2021; QLoRA, Dettmers et al. 2023).

    rsLoRA (Kalajdzievski 2023) scales by alpha / sqrt(rank), DoRA (Liu et al. 2024) learns the magnitude of every
    output apart. The adapter computes in the base's bf16, since a float32 one costs a cast of every activation on a
    CPU; its float32 master copy lives in the optimiser (see optimizer.py).
    """
    import peft
    import torch

    torch.manual_seed(seed)
    model = models.load_nf4(base) if quantization == "nf4" else models.load_float(base)
    if quantization == "nf4":
        prepare: Any = peft.prepare_model_for_kbit_training  # untyped in peft
        model = prepare(model, use_gradient_checkpointing=False)
        model = _norms_in_bf16(model)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        use_rslora=variant == "rslora",
        use_dora=variant == "dora",
    )
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    if lean and not torch.cuda.is_available():
        make_lean(model)
        if quantization == "nf4":
            say("nf4: dequantised once into bf16, the values stay NF4's: on a CPU memory is dearer saved than used")
    return model


def whole(base: Path, *, seed: int) -> Any:
    """The base with all of its weights to be trained: for models so small that an adapter saves nothing."""
    import torch

    torch.manual_seed(seed)
    return models.load_float(base)


def _norms_in_bf16(model: Any) -> Any:
    """Undo the float32 upcast of everything unquantised that k-bit preparation makes: nothing of it is trained."""
    import torch

    for parameter in model.parameters():
        if parameter.dtype == torch.float32 and not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model
