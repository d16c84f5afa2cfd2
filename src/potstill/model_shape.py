"""The sizes of a decoder that decide what training it costs, from config.json, a GGUF's header or the known bases.

Nothing is downloaded and no weight is read: this is what `check` can say of a base before any of it is here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from potstill.errors import PotstillError
from potstill.records import Json

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma3"]
FAMILIES: dict[str, Family] = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}
GGUF_KEYS = {
    "hidden": "embedding_length",
    "intermediate": "feed_forward_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_positions": "context_length",
    "sliding_window": "attention.sliding_window",
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One decoder: widths in numbers of elements, `sliding_window` in tokens (None: every layer sees everything).

    `other_parameters` are those outside the language model that are loaded with it (a vision tower).
    """

    family: Family
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    max_positions: int
    sliding_window: int | None = None
    other_parameters: int = 0

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one decoder layer: name -> (inputs, outputs)."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers of all decoder layers: what quantisation shrinks."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def embedding_parameters(self) -> int:
        """The embedding and, where it is not the same tensor, the output head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def small_parameters(self) -> int:
        """Norms and biases."""
        norms = 4 if self.family == "gemma3" else 2
        heads = 2 * self.head_dim if self.family in ("gemma3", "qwen3") else 0
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim if self.family == "qwen2" else 0
        return self.layers * (norms * self.hidden + heads + biases) + self.hidden

    @property
    def parameters(self) -> int:
        """All that is loaded."""
        return self.linear_parameters + self.embedding_parameters + self.small_parameters + self.other_parameters

    def to_json(self) -> Json:
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"parameters": self.parameters}


def shape_of(spec: str) -> ModelShape | None:
    """The shape of a base as a recipe names it; None for a hub id that is neither known nor in the hub's cache.

    Raises PotstillError for a base on this machine that is missing, or whose architecture is not a supported one.
    """
    from potstill.known_bases import KNOWN
    from potstill.models import locate

    path = locate(spec)
    if path is None:
        if spec in KNOWN:
            return KNOWN[spec].shape
        cached = _cached_config(spec)
        return None if cached is None else shape_from_config(json.loads(cached.read_text()), str(cached))
    if path.is_file():
        return _shape_from_gguf(path)
    file = path / "config.json"
    return shape_from_config(json.loads(file.read_text()), str(file))


def shape_from_config(config: Json, where: str = "config.json") -> ModelShape:
    """The shape that a transformers config describes; raises PotstillError on an architecture without a formula."""
    found = str(config.get("model_type"))
    family = FAMILIES.get(found)
    if family is None:
        known = ", ".join(FAMILIES)
        raise PotstillError(f"{where}: model_type is {found!r}, expected one of {known}; no memory estimate for it")
    text: Json = config.get("text_config") or config
    if "hidden_size" not in text:
        raise PotstillError(f"{where}: hidden_size is missing; save the config in full with transformers")
    heads = int(text["num_attention_heads"])
    # Qwen writes a window into every config and a switch beside it that leaves it unused.
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    return ModelShape(
        family=family,
        vocabulary=int(text["vocab_size"]),
        hidden=int(text["hidden_size"]),
        intermediate=int(text["intermediate_size"]),
        layers=int(text["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
        tied=bool(text.get("tie_word_embeddings", family == "gemma3")),
        max_positions=int(text["max_position_embeddings"]),
        sliding_window=None if window is None else int(window),
    )


def _shape_from_gguf(path: Path) -> ModelShape:
    """From the header: the vocabulary is the embedding's height, a head of its own is a tensor named output."""
    from gguf import GGUFReader

    reader: Any = GGUFReader(path)
    architecture = str(reader.get_field("general.architecture").contents())
    family = FAMILIES.get(architecture)
    if family is None:
        raise PotstillError(f"{path}: architecture is {architecture!r}, expected one of {', '.join(FAMILIES)}")
    values = {name: reader.get_field(f"{architecture}.{key}") for name, key in GGUF_KEYS.items()}
    found = {name: int(field.contents()) for name, field in values.items() if field is not None}
    found.setdefault("kv_heads", found["heads"])
    found.setdefault("head_dim", found["hidden"] // found["heads"])
    tensors = {each.name: each for each in reader.tensors}
    return ModelShape(
        family=family,
        vocabulary=int(tensors["token_embd.weight"].shape[1]),
        tied="output.weight" not in tensors,
        **found,
    )


def _cached_config(spec: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(spec, "config.json")
    except (ImportError, ValueError):
        return None
    return Path(found) if isinstance(found, str) else None
