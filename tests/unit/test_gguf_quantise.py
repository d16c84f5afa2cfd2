"""Quantisation of GGUF tensors: the kernels against ggml's own, error bounds, the mixtures, the second choices."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from potstill.errors import PotstillError
from potstill.gguf_layout import Tensor, family_of, layout
from potstill.gguf_quantise import QUANTISATIONS, Quantisation, choose, encode, file_type, more_bits, size_bytes
from potstill.records import Json

KINDS = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q5_0", "Q5_1")
SMOLLM2: Json = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B: Json = {
    **SMOLLM2, "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip


def values(rows: int = 32, columns: int = 768, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(rows, columns)) * 0.05).astype(np.float32)


def importances(columns: int = 768) -> NDArray[np.float32]:
    return (np.random.default_rng(1).gamma(0.5, size=columns) + 1e-3).astype(np.float32)


def matrix(shape: tuple[int, ...]) -> Tensor:
    return Tensor("blk.0.ffn_up.weight", "w", shape)


def dequantised(data: NDArray[Any], kind: str) -> NDArray[np.float32]:
    from gguf import GGMLQuantizationType, quants

    found: NDArray[np.float32] = quants.dequantize(data, GGMLQuantizationType[kind])
    return found


@pytest.mark.parametrize(
    ("kind", "relative"),
    [("Q8_0", 0.006), ("Q6_K", 0.02), ("Q5_K", 0.04), ("Q5_1", 0.045), ("Q5_0", 0.05), ("Q4_K", 0.08)],
)
def test_a_round_trip_errs_by_no_more_than_its_bits_allow(kind: str, relative: float) -> None:
    """Root mean square error over that of the weights; about half a step of 2^-bits of the block's range."""
    wanted = values()
    got = dequantised(encode(matrix(wanted.shape), wanted, kind), kind)
    error = float(np.sqrt(((got - wanted) ** 2).mean() / (wanted**2).mean()))
    assert relative / 4 < error < relative


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighed", [False, True])
def test_bytes_are_those_of_the_engines_own_kernels(kind: str, weighed: bool) -> None:
    from gguf import GGMLQuantizationType

    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs xllamacpp, which holds ggml's kernels")
    library = ctypes.CDLL(str(next(Path(next(iter(spec.submodule_search_locations))).glob("xllamacpp*.so"))))
    wanted, importance = values(), importances() if weighed else None
    found = encode(matrix(wanted.shape), wanted, kind, importance)
    theirs = np.zeros_like(found)
    quantise = library.ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    quantise.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    pointer = None if importance is None else importance.ctypes.data
    quantise(int(GGMLQuantizationType[kind]), wanted.ctypes.data, theirs.ctypes.data, 0, *wanted.shape, pointer)
    assert np.array_equal(found, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_weights_give_equal_bytes(kind: str) -> None:
    first, second = (encode(matrix((32, 768)), values(), kind, importances()) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.nbytes == size_bytes(matrix((32, 768)), kind)


@pytest.mark.parametrize("kind", ["Q6_K", "Q5_K", "Q4_K", "Q5_0", "Q5_1"])
def test_importance_moves_error_to_where_little_passes(kind: str) -> None:
    wanted, importance = values(), importances()

    def error(data: NDArray[Any]) -> float:
        return float((((dequantised(data, kind) - wanted) ** 2) * importance).mean())

    shape = matrix(wanted.shape)
    assert error(encode(shape, wanted, kind, importance)) < 0.97 * error(encode(shape, wanted, kind))


def test_blocks_of_rows_are_quantised_as_the_whole_would_be() -> None:
    wanted = values(rows=5000, columns=256)
    found = encode(matrix(wanted.shape), wanted, "Q4_K")
    assert np.array_equal(found[4096:], encode(matrix((904, 256)), wanted[4096:], "Q4_K"))


def kinds(config: Json, quantisation: Quantisation) -> dict[str, str]:
    tensors = list(layout(config))
    return {t.name: choice.kind for t, choice in zip(tensors, choose(tensors, quantisation), strict=True)}


def test_more_bits_go_to_the_first_and_last_eighth_and_every_third_between() -> None:
    assert [at for at in range(32) if more_bits(at, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_q4_k_m_is_the_mixture_of_llama_cpp() -> None:
    found = kinds(LLAMA_8B, "q4_k_m")
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q4_K", "Q6_K")
    for layer in range(32):
        bits = "Q6_K" if more_bits(layer, 32) else "Q4_K"
        assert {found[f"blk.{layer}.{part}.weight"] for part in ("attn_v", "ffn_down")} == {bits}
        rest = ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up")
        assert {found[f"blk.{layer}.{part}.weight"] for part in rest} == {"Q4_K"}
    assert {kind for name, kind in found.items() if "norm" in name} == {"F32"}


def test_q6_k_has_one_type_and_tied_embeddings_count_as_output() -> None:
    assert {kind for name, kind in kinds(LLAMA_8B, "q6_k").items() if "norm" not in name} == {"Q6_K"}
    assert kinds({**LLAMA_8B, "tie_word_embeddings": True}, "q4_k_m")["token_embd.weight"] == "Q6_K"


@pytest.mark.parametrize(
    ("quantisation", "narrow", "values_more", "down", "down_more"),
    [
        ("q4_k_m", "Q5_0", "Q8_0", "Q4_K", "Q6_K"),
        ("q5_k_m", "Q5_1", "Q8_0", "Q5_K", "Q6_K"),
        ("q6_k", "Q8_0", "Q8_0", "Q6_K", "Q6_K"),
    ],
)
def test_rows_that_do_not_divide_have_llama_cpps_second_choice(
    quantisation: Quantisation, narrow: str, values_more: str, down: str, down_more: str
) -> None:
    """SmolLM2-135M: rows of 576 everywhere but in the down projection (1536)."""
    found = kinds(SMOLLM2, quantisation)
    assert found["token_embd.weight"] == "Q8_0"
    assert found["blk.3.attn_q.weight"] == found["blk.3.ffn_up.weight"] == narrow
    assert (found["blk.3.attn_v.weight"], found["blk.0.attn_v.weight"]) == (narrow, values_more)
    assert (found["blk.3.ffn_down.weight"], found["blk.0.ffn_down.weight"]) == (down, down_more)


def test_rows_that_no_block_divides_stay_in_16_bits() -> None:
    found = kinds({**SMOLLM2, "intermediate_size": 1500}, "q4_k_m")
    assert found["blk.3.ffn_down.weight"] == "F16"


def test_every_quantisation_has_its_number_in_llama_cpp() -> None:
    assert [file_type(each) for each in QUANTISATIONS] == [1, 7, 18, 17, 15]


GEMMA: Json = {
    "architectures": ["Gemma3ForCausalLM"], "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32,
    "query_pre_attn_scalar": 32, "sliding_window": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**SMOLLM2, "attention_bias": True}, "attention_bias=True"),
        ({**SMOLLM2, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "use_sliding_window=True"),
        ({**SMOLLM2, "architectures": ["Qwen3ForCausalLM"], "rope_scaling": {"type": "yarn"}}, "'yarn'"),
        ({**SMOLLM2, "architectures": ["Gemma3ForConditionalGeneration"]}, "Gemma3ForConditionalGeneration"),
        ({**GEMMA, "layer_types": ["full_attention"] * 7}, "layer_types"),
        ({**GEMMA, "sliding_window_pattern": 2}, "sliding_window_pattern 2"),
        ({**GEMMA, "query_pre_attn_scalar": 100}, "query_pre_attn_scalar 100"),
        ({**GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ],
)
def test_what_the_layout_cannot_say_is_refused(config: Json, named: str) -> None:
    with pytest.raises(PotstillError, match=named):
        family_of(config)


def test_gemmas_embeddings_are_tied_where_its_configuration_leaves_it_out() -> None:
    assert "output.weight" not in {tensor.name for tensor in layout(GEMMA)}
