"""The student: a base, quantised or not, with a LoRA adapter on every linear layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from potstill import models


def student(
    base: Path, *, quantization: Literal["none", "nf4"], rank: int, alpha: int, dropout: float, seed: int
) -> Any:
    """The base with frozen weights and a fresh adapter (LoRA, Hu et al. 2021; QLoRA, Dettmers et al. 2023).

    The adapter computes in the base's bf16, since a float32 one costs a cast of every activation on a CPU;
    its float32 master copy lives in the optimiser (see optimizer.py).
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
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def _norms_in_bf16(model: Any) -> Any:
    """Undo the float32 upcast of everything unquantised that k-bit preparation makes: nothing of it is trained."""
    import torch

    for parameter in model.parameters():
        if parameter.dtype == torch.float32 and not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model
