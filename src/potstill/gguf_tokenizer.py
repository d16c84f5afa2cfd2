"""A tokenizer folder in the words of GGUF: tokens, merges, types, special ids, and the name of its way to cut text.

llama.cpp knows byte-level BPE tokenizers by a name for the expressions that cut text before merging. The name is
recognised here from tokenizer.json itself; a wrong one would give other tokens than training saw. Gemma's tokenizer is
a SentencePiece one, which tokenizer.json spells as merges and llama.cpp as scores: the sooner merged, the higher.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.records import Json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # SentencePiece's own sign for a space
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
ADDED_SCORE = -1000.0  # the community converter's; added tokens are found in the text before anything is merged
# Llama 3's expression, as its tokenizer.json publishes it.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen2's and Qwen3's.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_metadata(folder: Path, vocab_size: int) -> Json:
    """The `tokenizer.ggml.*` keys for a folder with tokenizer.json; lists are `vocab_size` long.

    Never adds a first or last token by itself: the chat template writes every special token. Raises PotstillError
    for a tokenizer that is neither byte-level BPE nor of Gemma's kind, has more tokens than the model, or cuts text in
    an unknown way.
    """
    tokenizer = _read(folder / "tokenizer.json")
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise PotstillError(
            f"GGUF: {folder} has a {model.get('type')} tokenizer; supported are byte-level BPE and Gemma's"
        )
    tokens, types = _tokens(tokenizer, vocab_size)
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        own = _scored(tokenizer, tokens, types, merges)
    else:
        own = _merged(folder, tokenizer, merges)
    return {
        **own,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **_special_ids(folder, tokens),
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }


def _merged(folder: Path, tokenizer: Json, merges: list[tuple[str, ...]]) -> Json:
    """The keys of byte-level BPE alone: the way to cut text, and the merges in their order."""
    if any(len(pair) != 2 or " " in "".join(pair) for pair in merges):
        raise PotstillError(f"GGUF: {folder} has merges of tokens with spaces, which GGUF cannot write")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer_name(tokenizer),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
    }


def _scored(tokenizer: Json, tokens: list[str], types: list[int], merges: list[tuple[str, ...]]) -> Json:
    """The keys of a SentencePiece tokenizer alone; gives `types` its bytes and its unknown token.

    llama.cpp merges the neighbours whose piece has the highest score, tokenizers those whose merge stands first, and
    the merges of a converted SentencePiece model stand in the order of their pieces' scores: so the first place that
    a piece has among the merges, negated, is a score that merges alike.
    """
    if not _is_gemma(tokenizer):
        raise PotstillError(
            "GGUF: the tokenizer falls back on bytes but does not treat spaces as Gemma's does; choose a base of the "
            "Llama 3, Qwen or Gemma families, or serve the adapter folder"
        )
    places: dict[str, int] = {}
    for at, pair in enumerate(merges):
        places.setdefault("".join(pair), at)
    last = float(len(merges))
    unknown = tokenizer["model"].get("unk_token")
    scores = []
    for at, text in enumerate(tokens):
        if types[at] == NORMAL:
            types[at] = BYTE if BYTE_TOKEN.fullmatch(text) else UNKNOWN if text == unknown else NORMAL
        elif types[at] == USER_DEFINED:
            tokens[at] = text.replace(SPACE, " ")  # looked for in the text as it is written
        scores.append(-float(places.get(text, last)) if types[at] == NORMAL else ADDED_SCORE)
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": scores}


def _is_gemma(tokenizer: Json) -> bool:
    """Whether every space becomes SentencePiece's sign, none is put in front, and nothing else is changed."""
    wanted = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    cut = tokenizer.get("pre_tokenizer")
    # after the replacement no space is left to cut at, so Gemma's own cut does nothing
    return tokenizer.get("normalizer") == wanted and (
        cut is None or (cut.get("type") == "Split" and cut.get("pattern") == {"String": " "})
    )


def pre_tokenizer_name(tokenizer: Json) -> str:
    """llama.cpp's name for the way a tokenizer.json cuts text: `gpt-2`, `smollm`, `llama-bpe` or `qwen2`."""
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
    if kinds == ["Split", "ByteLevel"] and steps[0].get("pattern") == {"Regex": QWEN2_PATTERN}:
        return "qwen2"
    raise PotstillError(
        f"GGUF: the tokenizer cuts text by {' + '.join(map(str, kinds))}, which has no known name in llama.cpp here; "
        "known are GPT-2's, SmolLM2's, Llama 3's and Qwen's: choose such a base, or serve the adapter folder"
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
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"), _byte_level(use_regex=False)],
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
        if at >= vocab_size and kind == CONTROL:
            continue  # Gemma's sign for an image stands beyond the embeddings of its text models: no row can hold it
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
