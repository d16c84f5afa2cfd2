"""Write a Llama-family model as a GGUF file that llama.cpp loads, and read such a file's metadata back.

Follows the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) and llama.cpp's layout of the `llama`
architecture. The tokenizer comes from tokenizer.json, since that is what training used: the file must cut text the
same way. One tensor is held at a time, in blocks of rows, so that memory stays at the size of the largest tensor.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from potstill.errors import PotstillError
from potstill.gguf_tokenizer import tokenizer_metadata
from potstill.records import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Quantisation = Literal["f16", "q8_0"]
ARCHITECTURE = "LlamaForCausalLM"
ROWS = 4096
F16_MAX = 65504.0
_ADVICE = "choose a Llama-family base (SmolLM2, Llama 3), or serve the adapter folder"


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """Size in bytes, number of weights, and how many tensors have each type (a row that Q8_0 cannot cut stays F16)."""

    size_bytes: int
    parameters: int
    tensors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the file: its name there, its name in the weights, its shape, the heads to reorder (0: none)."""

    name: str
    source: str
    shape: tuple[int, ...]
    heads: int = 0


def write_gguf(
    weights: Mapping[str, Any],
    config: Json,
    tokenizer_folder: Path,
    chat_template: str,
    out: Path,
    quantisation: Quantisation,
    name: str,
) -> GgufFacts:
    """Write `weights` (transformers names -> torch or numpy tensors) to `out`, which appears only when whole.

    `config` is the content of the model's config.json. Norms stay in F32; matrices become F16 or Q8_0.
    Raises PotstillError for an architecture or setting that llama.cpp's `llama` does not describe, a weight that is
    missing, of another shape or not finite, and a tokenizer that it cannot name.
    """
    from gguf import GGUFWriter

    _refuse_unsupported(config)
    tensors = list(_layout(config))
    partial = out.with_name(out.name + ".partial")
    writer = GGUFWriter(partial, "llama")
    try:
        _add_metadata(writer, config, name, quantisation)
        for key, value in tokenizer_metadata(tokenizer_folder, int(config["vocab_size"])).items():
            _add_value(writer, key, value)
        writer.add_chat_template(chat_template)
        types = _write_tensors(writer, tensors, weights, config, quantisation)
        writer.close()
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    return GgufFacts(out.stat().st_size, parameters, dict(types))


def read_gguf_metadata(path: Path) -> Json:
    """Every key of a GGUF file with its value (texts, numbers, flags, lists); raises PotstillError when it is none."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError) as fault:
        raise PotstillError(f"{path}: not a GGUF file ({fault}); export it again") from fault
    return {key: field.contents() for key, field in reader.fields.items()}


def _refuse_unsupported(config: Json) -> None:
    found = (config.get("architectures") or ["none"])[0]
    if found != ARCHITECTURE:
        raise PotstillError(f"GGUF: the model's architecture is {found}, supported is {ARCHITECTURE}; {_ADVICE}")
    for key, wanted in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if config.get(key, wanted) != wanted:
            raise PotstillError(f"GGUF: config.json has {key}={config[key]!r}, supported is {wanted!r}; {_ADVICE}")
    kind = _rope(config)["rope_type"]
    if kind not in ("default", "linear", "llama3"):
        raise PotstillError(f"GGUF: rope scaling {kind!r} found, supported are default, linear, llama3; {_ADVICE}")


def _rope(config: Json) -> Json:
    """Rope settings in one shape: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` before."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    found.setdefault("rope_type", found.get("type", "default"))
    return found


def _head_dim(config: Json) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _layout(config: Json) -> Iterator[_Tensor]:
    """The tensors of the architecture in file order, with the shapes that the configuration promises."""
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    wide, narrow = heads * _head_dim(config), kv_heads * _head_dim(config)
    vocabulary = (int(config["vocab_size"]), hidden)
    yield _Tensor("token_embd.weight", "model.embed_tokens.weight", vocabulary)
    for layer in range(int(config["num_hidden_layers"])):
        to, source = f"blk.{layer}", f"model.layers.{layer}"
        yield _Tensor(f"{to}.attn_norm.weight", f"{source}.input_layernorm.weight", (hidden,))
        yield _Tensor(f"{to}.ffn_down.weight", f"{source}.mlp.down_proj.weight", (hidden, inner))
        yield _Tensor(f"{to}.ffn_gate.weight", f"{source}.mlp.gate_proj.weight", (inner, hidden))
        yield _Tensor(f"{to}.ffn_up.weight", f"{source}.mlp.up_proj.weight", (inner, hidden))
        yield _Tensor(f"{to}.ffn_norm.weight", f"{source}.post_attention_layernorm.weight", (hidden,))
        yield _Tensor(f"{to}.attn_k.weight", f"{source}.self_attn.k_proj.weight", (narrow, hidden), kv_heads)
        yield _Tensor(f"{to}.attn_output.weight", f"{source}.self_attn.o_proj.weight", (hidden, wide))
        yield _Tensor(f"{to}.attn_q.weight", f"{source}.self_attn.q_proj.weight", (wide, hidden), heads)
        yield _Tensor(f"{to}.attn_v.weight", f"{source}.self_attn.v_proj.weight", (narrow, hidden))
    yield _Tensor("output_norm.weight", "model.norm.weight", (hidden,))
    if not config.get("tie_word_embeddings", False):
        yield _Tensor("output.weight", "lm_head.weight", vocabulary)


def _add_metadata(writer: Any, config: Json, name: str, quantisation: Quantisation) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFType, LlamaFileType, RopeScalingType

    heads, rope = int(config["num_attention_heads"]), _rope(config)
    writer.add_type(GGUFType.MODEL)
    writer.add_name(name)
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_rope_dimension_count(_head_dim(config))
    if _head_dim(config) * heads != config["hidden_size"]:
        writer.add_key_length(_head_dim(config))
        writer.add_value_length(_head_dim(config))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if quantisation == "f16" else LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(GGML_QUANT_VERSION)


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
    writer: Any, tensors: list[_Tensor], weights: Mapping[str, Any], config: Json, quantisation: Quantisation
) -> Counter[str]:
    """Declare every tensor, write the head of the file, then the data one tensor at a time; counts by type."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    types: Counter[str] = Counter()
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    kinds = [_kind(tensor, quantisation) for tensor in tensors]
    for tensor, kind in zip(tensors, kinds, strict=True):
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        size_bytes = math.prod(tensor.shape) // block * size
        # The declared dtype only matters when no quantisation type is given.
        writer.add_tensor_info(tensor.name, tensor.shape, np.float32, size_bytes, GGMLQuantizationType[kind])
        types[kind] += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
        types["F32"] += 1
    for tensor, kind in zip(tensors, kinds, strict=True):
        writer.write_tensor_data(_encoded(tensor, _take(tensor, weights), kind))
    return types


def _kind(tensor: _Tensor, quantisation: Quantisation) -> str:
    """F32 for vectors (llama.cpp's arithmetic expects it), Q8_0 where a row divides into blocks of 32, else F16."""
    if len(tensor.shape) == 1:
        return "F32"
    return "Q8_0" if quantisation == "q8_0" and tensor.shape[-1] % 32 == 0 else "F16"


def _take(tensor: _Tensor, weights: Mapping[str, Any]) -> Any:
    if tensor.source not in weights:
        raise PotstillError(f"GGUF: weight {tensor.source} is missing; the model folder is incomplete, make it again")
    found = weights[tensor.source]
    if tuple(found.shape) != tensor.shape:
        raise PotstillError(
            f"GGUF: {tensor.source} has shape {tuple(found.shape)}, config.json says {tensor.shape}; "
            "use the config.json that belongs to the weights"
        )
    return found


def _encoded(tensor: _Tensor, values: Any, kind: str) -> NDArray[Any]:
    """The tensor's bytes in the file's type, made by blocks of rows; raises PotstillError on a non-finite weight."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    if len(tensor.shape) == 1:
        return _checked(_float32(values), tensor.source, math.inf)
    order = rope_row_order(tensor.shape[0], tensor.heads) if tensor.heads else None
    blocks = []
    for start in range(0, tensor.shape[0], ROWS):
        rows = values[start : start + ROWS] if order is None else values[order[start : start + ROWS]]
        block = _checked(_float32(rows), tensor.source, F16_MAX)
        blocks.append(quants.quantize(block, GGMLQuantizationType[kind]))
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]


def rope_row_order(rows: int, heads: int) -> NDArray[np.int64]:
    """Which row of a transformers Q or K matrix stands at each row of the file.

    transformers rotates dimension i with i + d/2 of a head, llama.cpp's `llama` rotates neighbours (2i, 2i + 1), so
    the two halves of every head are interleaved.
    """
    import numpy as np

    order: NDArray[np.int64] = np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)
    return order


def _float32(values: Any) -> NDArray[np.float32]:
    """A torch or numpy tensor as contiguous float32 (numpy knows no bfloat16, so torch widens its own)."""
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.ascontiguousarray(values, dtype=np.float32)


def _checked(block: NDArray[np.float32], source: str, limit: float) -> NDArray[np.float32]:
    import numpy as np

    largest = float(np.abs(block).max(initial=0.0))
    if not (math.isfinite(largest) and largest <= limit):
        raise PotstillError(
            f"GGUF: {source} holds {largest}, expected finite weights up to {F16_MAX:g}; "
            "the training diverged, repeat it"
        )
    return block


def _rope_factors(config: Json) -> NDArray[np.float32] | None:
    """Llama 3's frequency divisors: 1 for short wavelengths, `factor` for long ones, a smooth step between."""
    import numpy as np

    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    size, window = _head_dim(config), float(rope["original_max_position_embeddings"])
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, size, 2, dtype=np.float64) / size)
    smooth = np.clip((window / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
