"""Write a model as a GGUF file that llama.cpp loads, and read such a file's metadata back.

Follows the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md); what stands in the file is the matter of
potstill.gguf_layout and potstill.gguf_quantise. The tokenizer comes from tokenizer.json, since that is what training
used: the file must cut text the same way. One tensor is held at a time, in blocks of rows, so that memory stays at the
size of the largest tensor.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError
from potstill.gguf_layout import Tensor, add_metadata, family_of, layout, rope_factors
from potstill.gguf_quantise import Choice, Quantisation, choose, encode, file_type, size_bytes
from potstill.gguf_tokenizer import tokenizer_metadata
from potstill.records import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """Size in bytes, number of weights, how many tensors have each type, and those that have not the wanted one.

    `fallbacks` says for each of these, by name, what was wanted, what it has, and the row length that is the reason.
    `weighted` counts the tensors whose quantisation was weighed by importance.
    """

    size_bytes: int
    parameters: int
    tensors: Mapping[str, int]
    fallbacks: Mapping[str, Json] = field(default_factory=dict)
    weighted: int = 0


def write_gguf(
    weights: Mapping[str, Any],
    config: Json,
    tokenizer_folder: Path,
    chat_template: str,
    out: Path,
    quantisation: Quantisation,
    name: str,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
) -> GgufFacts:
    """Write `weights` (transformers names -> torch or numpy tensors) to `out`, which appears only when whole.

    `config` is the content of the model's config.json; `importance` holds, by the weight's name, how much each of its
    columns matters. Raises PotstillError for an architecture or setting that llama.cpp's layout does not describe, a
    weight that is missing, of another shape or not finite, and a tokenizer that it cannot name.
    """
    from gguf import GGUFWriter

    family = family_of(config)
    tensors = list(layout(config))
    choices = choose(tensors, quantisation)
    partial = out.with_name(out.name + ".partial")
    writer = GGUFWriter(partial, family.architecture)
    try:
        add_metadata(writer, config, name, file_type(quantisation))
        for key, value in tokenizer_metadata(tokenizer_folder, int(config["vocab_size"])).items():
            _add_value(writer, key, value)
        writer.add_chat_template(chat_template)
        types, weighted = _write_tensors(writer, tensors, choices, weights, config, importance or {})
        writer.close()
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    return GgufFacts(out.stat().st_size, parameters, dict(types), _fallbacks(tensors, choices), weighted)


def read_gguf_metadata(path: Path) -> Json:
    """Every key of a GGUF file with its value (texts, numbers, flags, lists); raises PotstillError when it is none."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError) as fault:
        raise PotstillError(f"{path}: not a GGUF file ({fault}); export it again") from fault
    return {key: field.contents() for key, field in reader.fields.items()}


def _add_value(writer: Any, key: str, value: str | bool | int | list[Any]) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _write_tensors(
    writer: Any,
    tensors: list[Tensor],
    choices: list[Choice],
    weights: Mapping[str, Any],
    config: Json,
    importance: Mapping[str, NDArray[np.float32]],
) -> tuple[Counter[str], int]:
    """Declare every tensor, write the head of the file, then the data one tensor at a time; counts by type."""
    import numpy as np
    from gguf import GGMLQuantizationType

    types: Counter[str] = Counter()
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        types["F32"] += 1
    for tensor, choice in zip(tensors, choices, strict=True):
        # The declared dtype only matters when no quantisation type is given.
        kind = GGMLQuantizationType[choice.kind]
        writer.add_tensor_info(tensor.name, tensor.shape, np.float32, size_bytes(tensor, choice.kind), kind)
        types[choice.kind] += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    weighted = 0
    for tensor, choice in zip(tensors, choices, strict=True):
        weighing = importance.get(tensor.source) if takes_importance(choice.kind) else None
        weighted += weighing is not None
        writer.write_tensor_data(encode(tensor, _take(tensor, weights), choice.kind, weighing))
    return types, weighted


def takes_importance(kind: str) -> bool:
    """Whether the kernel of a type weighs columns: Q8_0 rounds each block to its largest value and cannot."""
    return kind not in ("F32", "F16", "Q8_0")


def _take(tensor: Tensor, weights: Mapping[str, Any]) -> Any:
    if tensor.source not in weights:
        raise PotstillError(f"GGUF: weight {tensor.source} is missing; the model folder is incomplete, make it again")
    found = weights[tensor.source]
    if tuple(found.shape) != tensor.shape:
        raise PotstillError(
            f"GGUF: {tensor.source} has shape {tuple(found.shape)}, config.json says {tensor.shape}; "
            "use the config.json that belongs to the weights"
        )
    return found


def _fallbacks(tensors: list[Tensor], choices: list[Choice]) -> dict[str, Json]:
    return {
        tensor.name: {"wanted": choice.wanted, "written": choice.kind, "row": tensor.shape[-1]}
        for tensor, choice in zip(tensors, choices, strict=True)
        if choice.kind != choice.wanted
    }
