"""How each family of models stands in a GGUF file: the tensors' names and shapes, and the keys that describe them.

Follows llama.cpp's layouts of the architectures `llama`, `qwen2`, `qwen3` and `gemma3` (text). What a layout cannot
say is refused, since the file would load and answer wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError
from potstill.records import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# llama.cpp counts Gemma 3's layers so: five that see the window, then one that sees all.
GEMMA3_PERIOD = 6
# It scales the attention of this one (Gemma 3 27B, known by its layers) by the width, of the others by the head.
GEMMA3_27B_LAYERS = 62
_ADVICE = "choose a base of the Llama, Qwen2, Qwen3 or Gemma 3 text families, or serve the adapter folder"


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: its name in llama.cpp, the settings that it takes as given, the rope scalings that it knows.

    `tied` says whether embeddings are shared when config.json leaves it out.
    """

    architecture: str
    given: Mapping[str, Any]
    rope: tuple[str, ...]
    tied: bool = False


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama", {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}, ("default", "linear", "llama3")
    ),
    "Qwen2ForCausalLM": Family("qwen2", {"hidden_act": "silu", "use_sliding_window": False}, ("default", "linear")),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        {"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False},
        ("default", "linear"),
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3",
        {
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "use_bidirectional_attention": False,
        },
        ("default", "linear"),
        tied=True,
    ),
}
# What potstill.model_shape calls the families that can be written.
EXPORTED_FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file: its name there, its name in the weights, its shape.

    `heads` says that its rows are reordered head by head (0: not), `shift` is added to every value.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    heads: int = 0
    shift: float = 0.0


def family_of(config: Json) -> Family:
    """The family of a config.json; raises PotstillError for one that cannot be written, or a setting that cannot."""
    found = (config.get("architectures") or ["none"])[0]
    family = FAMILIES.get(found)
    if family is None:
        known = ", ".join(FAMILIES)
        raise PotstillError(f"GGUF: the model's architecture is {found}, supported are {known}; {_ADVICE}")
    for key, wanted in family.given.items():
        if (config.get(key, wanted) or wanted) != wanted:
            raise PotstillError(f"GGUF: config.json has {key}={config[key]!r}, supported is {wanted!r}; {_ADVICE}")
    for rope in (full_rope(config), sliding_rope(config)):
        if rope["rope_type"] not in family.rope:
            known = ", ".join(family.rope)
            raise PotstillError(f"GGUF: rope scaling {rope['rope_type']!r} found, supported are {known}; {_ADVICE}")
    if family.architecture == "gemma3":
        _refuse_other_gemma(config)
    return family


def _refuse_other_gemma(config: Json) -> None:
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    usual = [_kind_of_layer(at) for at in range(layers)]
    if (found := config.get("layer_types") or usual) != usual:
        raise PotstillError(
            f"GGUF: layer_types {found} found; llama.cpp takes every {GEMMA3_PERIOD}th layer as full; {_ADVICE}"
        )
    period = config.get("sliding_window_pattern", config.get("_sliding_window_pattern")) or GEMMA3_PERIOD
    if period != GEMMA3_PERIOD:
        raise PotstillError(f"GGUF: sliding_window_pattern {period} found, supported is {GEMMA3_PERIOD}; {_ADVICE}")
    wanted = int(config["hidden_size"]) // heads if layers == GEMMA3_27B_LAYERS else head_dim(config)
    if (scalar := config.get("query_pre_attn_scalar", 256)) != wanted:
        raise PotstillError(f"GGUF: query_pre_attn_scalar {scalar} found, llama.cpp takes {wanted} here; {_ADVICE}")
    if sliding_rope(config)["rope_type"] != "default":
        raise PotstillError(f"GGUF: the sliding layers' rope is scaled, which llama.cpp does not do; {_ADVICE}")


def _kind_of_layer(at: int) -> str:
    return "full_attention" if (at + 1) % GEMMA3_PERIOD == 0 else "sliding_attention"


def full_rope(config: Json) -> Json:
    """Rope of the layers that see everything: `rope_parameters` of transformers 5, or its parts as before."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found = dict(found.get("full_attention") or found)
    found.setdefault("rope_theta", config.get("rope_theta", 1e6 if "rope_local_base_freq" in config else 1e4))
    found.setdefault("rope_type", found.get("type", "default"))
    return found


def sliding_rope(config: Json) -> Json:
    """Rope of the layers that see a window (Gemma 3)."""
    found = dict((config.get("rope_parameters") or {}).get("sliding_attention") or {})
    found.setdefault("rope_theta", config.get("rope_local_base_freq", 1e4))
    found.setdefault("rope_type", "default")
    return found


def head_dim(config: Json) -> int:
    """Numbers a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def kv_heads(config: Json) -> int:
    """Heads of keys and values."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def tied(config: Json) -> bool:
    """Whether the output matrix is the embeddings."""
    return bool(config.get("tie_word_embeddings", FAMILIES[config["architectures"][0]].tied))


def layout(config: Json) -> Iterator[Tensor]:
    """The tensors in file order, with the shapes that the configuration promises."""
    hidden = int(config["hidden_size"])
    vocabulary = (int(config["vocab_size"]), hidden)
    shift = 1.0 if family_of(config).architecture == "gemma3" else 0.0
    yield Tensor("token_embd.weight", "model.embed_tokens.weight", vocabulary)
    for layer in range(int(config["num_hidden_layers"])):
        yield from _layer(config, layer)
    yield Tensor("output_norm.weight", "model.norm.weight", (hidden,), shift=shift)
    if not tied(config):
        yield Tensor("output.weight", "lm_head.weight", vocabulary)


def _layer(config: Json, layer: int) -> Iterator[Tensor]:
    architecture = family_of(config).architecture
    hidden, inner, size = int(config["hidden_size"]), int(config["intermediate_size"]), head_dim(config)
    heads, groups = int(config["num_attention_heads"]), kv_heads(config)
    to, source = f"blk.{layer}", f"model.layers.{layer}"

    def matrix(name: str, of: str, rows: int, columns: int, reorder: int = 0) -> Tensor:
        # transformers rotates halves of a head; llama.cpp does so too but for `llama`, where it rotates neighbours
        reorder = reorder if architecture == "llama" else 0
        return Tensor(f"{to}.{name}.weight", f"{source}.{of}.weight", (rows, columns), reorder)

    def norm(name: str, of: str, length: int = hidden) -> Tensor:
        # Gemma multiplies by 1 + weight, llama.cpp by what the file holds
        shift = 1.0 if architecture == "gemma3" else 0.0
        return Tensor(f"{to}.{name}.weight", f"{source}.{of}.weight", (length,), shift=shift)

    yield norm("attn_norm", "input_layernorm")
    yield matrix("ffn_down", "mlp.down_proj", hidden, inner)
    yield matrix("ffn_gate", "mlp.gate_proj", inner, hidden)
    yield matrix("ffn_up", "mlp.up_proj", inner, hidden)
    if architecture == "gemma3":
        yield norm("post_attention_norm", "post_attention_layernorm")
        yield norm("ffn_norm", "pre_feedforward_layernorm")
        yield norm("post_ffw_norm", "post_feedforward_layernorm")
    else:
        yield norm("ffn_norm", "post_attention_layernorm")
    yield matrix("attn_k", "self_attn.k_proj", groups * size, hidden, groups)
    yield matrix("attn_output", "self_attn.o_proj", hidden, heads * size)
    yield matrix("attn_q", "self_attn.q_proj", heads * size, hidden, heads)
    yield matrix("attn_v", "self_attn.v_proj", groups * size, hidden)
    if architecture in ("qwen3", "gemma3"):
        yield norm("attn_k_norm", "self_attn.k_norm", size)
        yield norm("attn_q_norm", "self_attn.q_norm", size)
    if architecture == "qwen2":
        for part, rows in (("k", groups * size), ("q", heads * size), ("v", groups * size)):
            yield Tensor(f"{to}.attn_{part}.bias", f"{source}.self_attn.{part}_proj.bias", (rows,))


def add_metadata(writer: Any, config: Json, name: str, file_type: int) -> None:
    """Write the keys that describe the architecture; `file_type` is llama.cpp's number of the quantisation."""
    from gguf import GGML_QUANT_VERSION, GGUFType, RopeScalingType

    architecture, rope, size = family_of(config).architecture, full_rope(config), head_dim(config)
    writer.add_type(GGUFType.MODEL)
    writer.add_name(name)
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(int(config["num_attention_heads"]))
    writer.add_head_count_kv(kv_heads(config))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if architecture == "llama":
        writer.add_rope_dimension_count(size)
    if config.get("head_dim") or architecture in ("qwen3", "gemma3"):
        writer.add_key_length(size)
        writer.add_value_length(size)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if architecture == "gemma3":
        writer.add_sliding_window(int(config["sliding_window"]))
        writer.add_rope_freq_base_swa(float(sliding_rope(config)["rope_theta"]))
        if config.get("final_logit_softcapping"):
            writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def rope_factors(config: Json) -> NDArray[np.float32] | None:
    """Llama 3's frequency divisors: 1 for short wavelengths, `factor` for long ones, a smooth step between."""
    import numpy as np

    rope = full_rope(config)
    if rope["rope_type"] != "llama3":
        return None
    size, window = head_dim(config), float(rope["original_max_position_embeddings"])
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, size, 2, dtype=np.float64) / size)
    smooth = np.clip((window / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def rope_row_order(rows: int, heads: int) -> NDArray[np.int64]:
    """Which row of a transformers Q or K matrix stands at each row of a `llama` file.

    transformers rotates dimension i with i + d/2 of a head, llama.cpp's `llama` rotates neighbours (2i, 2i + 1), so
    the two halves of every head are interleaved.
    """
    import numpy as np

    order: NDArray[np.int64] = np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)
    return order
