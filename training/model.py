"""The student: a base, quantised or not, with an adapter on every linear layer, or all of its weights to be trained.

Of a base that also sees images, only what reads and writes text is trained: its decoder and its head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from potstill import models

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
    shardable: bool = False,
) -> Any:
    """The base with frozen weights and a fresh adapter (LoRA, Hu et al. 2021; QLoRA, Dettmers et al. 2023).

    rsLoRA (Kalajdzievski 2023) scales by alpha / sqrt(rank), DoRA (Liu et al. 2024) learns the magnitude of every
    output apart. The adapter computes in the base's bf16, since a float32 one costs a cast of every activation on a
    CPU; its float32 master copy lives in the optimiser (see optimizer.py). A `shardable` one can be given to
    processes.shard, and stands on the CPU until then, unless it is quantised: that is a card's work.
    """
    import peft
    import torch

    torch.manual_seed(seed)
    if quantization == "none":
        model = models.load_float(base, on_cpu=shardable)
    else:
        model = models.load_nf4(base, shardable=shardable)
        prepare: Any = peft.prepare_model_for_kbit_training  # untyped in peft
        model = prepare(model, use_gradient_checkpointing=False)
        model = _norms_in_bf16(model)
        _never_repacked(model)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=text_linears(model) or "all-linear",
        task_type="CAUSAL_LM",
        use_rslora=variant == "rslora",
        use_dora=variant == "dora",
    )
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    if lean and not shardable and not torch.cuda.is_available():
        make_lean(model)
    return model


def whole(base: Path, *, seed: int) -> Any:
    """The base with all of its weights to be trained: for models so small that an adapter saves nothing."""
    import torch

    torch.manual_seed(seed)
    model = models.load_float(base)
    text = {*model.get_decoder().parameters(), *model.get_output_embeddings().parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in text)
    return model


def text_linears(model: Any) -> list[str]:
    """Names of the decoder's linear layers, where the model has others beside its head (a vision tower); else none."""
    import torch

    linear = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    text = {*model.get_decoder().modules()}
    inside = [name for name, each in linear.items() if each in text]
    head = model.get_output_embeddings()
    return inside if any(each not in text and each is not head for each in linear.values()) else []


def _never_repacked(model: Any) -> None:
    """Keep bitsandbytes' 4-bit layers from repacking their weights at the first evaluation on a processor.

    Its backward pass does not know the packed layout (0.50): every gradient after the first evaluation would be wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _norms_in_bf16(model: Any) -> Any:
    """Undo the float32 upcast of everything unquantised that k-bit preparation makes: nothing of it is trained."""
    import torch

    for parameter in model.parameters():
        if parameter.dtype == torch.float32 and not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model
