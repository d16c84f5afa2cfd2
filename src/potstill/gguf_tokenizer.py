"""A tokenizer folder in the words of GGUF: tokens, merges, types, special ids, and the name of its way to cut text.

llama.cpp knows byte-level BPE tokenizers by a name for the expressions that cut text before merging. The name is
recognised here from tokenizer.json itself; a wrong one would give other tokens than training saw.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.records import Json

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# Llama 3's expression, as its tokenizer.json publishes it.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_metadata(folder: Path, vocab_size: int) -> Json:
    """The `tokenizer.ggml.*` keys for a folder with tokenizer.json; lists are `vocab_size` long.

    Never adds a first or last token by itself: the chat template writes every special token. Raises PotstillError
    for a tokenizer that is not byte-level BPE, has more tokens than the model, or cuts text in an unknown way.
    """
    tokenizer = _read(folder / "tokenizer.json")
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise PotstillError(f"GGUF: {folder} has a {model.get('type')} tokenizer; supported is byte-level BPE")
    tokens, types = _tokens(tokenizer, vocab_size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if any(pair.count(" ") != 1 for pair in merges):
        raise PotstillError(f"GGUF: {folder} has merges of tokens with spaces, which GGUF cannot write")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer_name(tokenizer),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        **_special_ids(folder, tokens),
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }


def pre_tokenizer_name(tokenizer: Json) -> str:
    """llama.cpp's name for the way a tokenizer.json cuts text: `gpt-2`, `smollm` or `llama-bpe`."""
    found = tokenizer.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    kinds = [step.get("type") for step in steps]
    gpt2 = kinds[-1] == "ByteLevel" and steps[-1].get("use_regex", True) and not steps[-1].get("add_prefix_space")
    if kinds == ["ByteLevel"] and gpt2:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and gpt2 and steps[0].get("individual_digits"):
        return "smollm"
    if (
        kinds == ["Split", "ByteLevel"]
        and r"\p{N}{1,3}" in str(steps[0].get("pattern"))
        and tokenizer["model"].get("ignore_merges")
    ):
        return "llama-bpe"
    raise PotstillError(
        f"GGUF: the tokenizer cuts text by {' + '.join(map(str, kinds))}, which has no known name in llama.cpp here; "
        "known are GPT-2's, SmolLM2's and Llama 3's: choose such a base, or serve the adapter folder"
    )


def restore_pre_tokenizer(tokenizer: Any, name: str) -> None:
    """Set a transformers tokenizer that was made from a GGUF to cut text by llama.cpp's `name` (tokenizer.ggml.pre).

    transformers gives every byte-level GGUF the GPT-2 way, so that SmolLM2 would meet "a  1" in tokens that its
    pretraining never made. Raises PotstillError for a name that cannot be restored.
    """
    from tokenizers import Regex, pre_tokenizers

    steps: dict[str, list[Any]] = {
        "gpt-2": [_byte_level(use_regex=True)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), _byte_level(use_regex=True)],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"), _byte_level(use_regex=False)],
    }
    if name not in steps:
        raise PotstillError(
            f"base_model: the GGUF cuts text by {name!r}; known are {', '.join(steps)}; "
            "give the same model as a hub id or a folder"
        )
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = steps[name][0] if len(steps[name]) == 1 else pre_tokenizers.Sequence(steps[name])
    if name == "llama-bpe":
        backend.model.ignore_merges = True


def _byte_level(*, use_regex: bool) -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=use_regex)


def _read(path: Path) -> Json:
    try:
        found: Json = json.loads(path.read_text())
    except (OSError, ValueError) as fault:
        raise PotstillError(f"{path}: cannot be read ({fault}); expected a saved fast tokenizer") from fault
    return found


def _tokens(tokenizer: Json, vocab_size: int) -> tuple[list[str], list[int]]:
    """Token texts and types by id; ids that the model has and the tokenizer lacks are marked unused."""
    tokens = [f"[PAD{at}]" for at in range(vocab_size)]
    types = [UNUSED] * vocab_size
    placed = [(text, at, NORMAL) for text, at in tokenizer["model"]["vocab"].items()]
    placed += [
        (each["content"], each["id"], CONTROL if each["special"] else USER_DEFINED)
        for each in tokenizer.get("added_tokens", [])
    ]
    for text, at, kind in placed:
        if at >= vocab_size:
            raise PotstillError(
                f"GGUF: token {text!r} has id {at}, but the model has {vocab_size} embeddings; "
                "use the tokenizer that belongs to the model"
            )
        tokens[at], types[at] = text, kind
    return tokens, types


def _special_ids(folder: Path, tokens: list[str]) -> Json:
    config = _read(folder / "tokenizer_config.json")
    ids: Json = {}
    for name, key in SPECIAL_IDS.items():
        token: Any = config.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None and text in tokens:
            ids[f"tokenizer.ggml.{key}_token_id"] = tokens.index(text)
    return ids
