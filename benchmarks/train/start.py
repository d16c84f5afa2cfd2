"""The same adapter weights to begin with, whoever trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def same_start(model: Any, path: Path) -> None:
    """Give a PEFT model the adapter weights in `path`; where there are none yet, keep its own there.

    Raises KeyError when the file holds other adapters than the model has.
    """
    import torch
    from safetensors.torch import load_file, save_file

    own = {plain(name): weight for name, weight in model.named_parameters() if "lora_" in name}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.detach().float().contiguous() for name, weight in own.items()}, path)
    saved = load_file(path)
    if saved.keys() != own.keys():
        raise KeyError(f"{path} holds {len(saved)} adapter weights by other names than the model's {len(own)}")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(saved[name])


def plain(name: str) -> str:
    """A parameter's name without what wrappers put before and into it."""
    return name.removeprefix("base_model.model.").replace(".default", "").removesuffix(".weight")
