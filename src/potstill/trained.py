"""What training leaves in an adapter folder, and how it is loaded: the one place that knows both layouts.

adapter/     a PEFT adapter (LoRA, rsLoRA, DoRA), to be put onto the base that it was trained on
model/       all weights (`method: full`): a transformers folder of its own, the base is no longer needed
tokenizer/   beside either
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill import models
from potstill.errors import DamagedInput

ADAPTER, MODEL, TOKENIZER = "adapter", "model", "tokenizer"


@dataclass(frozen=True, slots=True)
class Trained:
    """`model` is the folder of float weights to load; `adapter` goes onto it, and is None after full fine-tuning."""

    model: Path
    adapter: Path | None
    tokenizer: Path

    @property
    def folders(self) -> list[Path]:
        """What has to be loaded to answer as the student does."""
        return [self.model] if self.adapter is None else [self.model, self.adapter]


def holds_trained(folder: Path) -> bool:
    """Whether it is a folder that training left, of either layout."""
    return (folder / ADAPTER / "adapter_config.json").is_file() or (folder / MODEL / "config.json").is_file()


def find_trained(folder: Path, base: Path) -> Trained:
    """What the adapter folder `folder` holds, trained on `base`; raises DamagedInput when it holds neither or both."""
    adapter, model = (folder / ADAPTER / "adapter_config.json").is_file(), (folder / MODEL / "config.json").is_file()
    if adapter == model:
        found = "both adapter/ and model/" if adapter else "neither adapter/ nor model/"
        raise DamagedInput(f"{folder}: holds {found}, expected one of them; train again")
    if model:
        return Trained(folder / MODEL, None, folder / TOKENIZER)
    return Trained(base, folder / ADAPTER, folder / TOKENIZER)


def load_trained(trained: Trained, *, dtype: str = "bfloat16") -> Any:
    """The student as a plain transformers model: an adapter is merged into the weights."""
    model = models.load_float(trained.model, dtype=dtype)
    if trained.adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(trained.adapter)).merge_and_unload()


def save_trained(model: Any, folder: Path) -> Path:
    """Write a trained model to its place in `folder`: its adapter alone where it wears one, else all of its weights."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder / ADAPTER)
        (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # peft's template card; ours is the manifest
        return folder / ADAPTER
    model.save_pretrained(folder / MODEL)
    return folder / MODEL
