"""What is known of a base without loading it: parameters, sizes in the usual formats, context window, licence."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.models import Base
from potstill.records import Json

from .licence import Licence, licence_of

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# Bits a weight of llama.cpp's blocks of 32: Q8_0 has 8 bits and a half-precision scale, Q4_0 has 4 and one.
BLOCK, BITS = 32, {"q8_0": 8.5, "q4_0": 4.5}
WINDOWS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
NO_LIMIT = 10**9  # tokenizers without a bound say 10**30


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the weights: bf16 exactly (two a parameter), q8_0 and q4_0 estimated."""

    parameters: int
    bf16: int
    q8_0: int
    q4_0: int


@dataclass(frozen=True, slots=True)
class Description:
    """What a base says of itself; None where it does not. `window` in tokens."""

    model_type: str | None
    sizes: Sizes | None
    window: int | None
    licence: Licence

    def to_json(self) -> Json:
        return {
            "model_type": self.model_type,
            "parameters": self.sizes.parameters if self.sizes else None,
            "size_bytes": {name: value for name, value in asdict(self.sizes).items() if name != "parameters"}
            if self.sizes
            else None,
            "window": self.window,
            "licence": {**asdict(self.licence), "found": self.licence.found},
            "licence_text": str(self.licence),
        }


def describe(base: Base) -> Description:
    """Read from the folder's own files; no weight is loaded."""
    config = _json(base.path / "config.json")
    return Description(
        config.get("model_type"),
        sizes_of(tensor_shapes(base.path)),
        window_of(config, _json(base.path / "tokenizer_config.json")),
        licence_of(base, config),
    )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Shapes of all tensors from the headers of the safetensors files; None without such files or with packed ones.

    A file begins with the length of its JSON header (8 bytes, little endian), then the header.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = json.loads(stream.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in FLOATS:
                return None  # packed weights: a shape then says nothing of the number of parameters
            shapes[name] = tuple(entry["shape"])
    return shapes or None


def sizes_of(shapes: dict[str, tuple[int, ...]] | None) -> Sizes | None:
    """Sizes from shapes. Vectors, and matrices whose rows do not divide by 32, stay as they are."""
    if shapes is None:
        return None
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(counts.values())

    def quantised(bits: float) -> int:
        small = {name: len(shape) >= 2 and shape[-1] % BLOCK == 0 for name, shape in shapes.items()}
        return round(sum(count * (bits / 8 if small[name] else 2.0) for name, count in counts.items()))

    return Sizes(total, 2 * total, quantised(BITS["q8_0"]), quantised(BITS["q4_0"]))


def window_of(config: Json, tokenizer: Json) -> int | None:
    """The context window in tokens: the model's positions, or what the tokenizer says."""
    for place in (config, config.get("text_config") or {}):
        for name in WINDOWS:
            if isinstance(place.get(name), int):
                return int(place[name])
    said = tokenizer.get("model_max_length")
    return int(said) if isinstance(said, int | float) and 0 < said < NO_LIMIT else None


def _json(path: Path) -> Json:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
