"""Tiny models with random weights of the other families that export writes, each with its own kind of tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from potstill import chat, models
from potstill.gguf_tokenizer import QWEN2_PATTERN, SPACE
from potstill.records import Json
from tests.stages.tiny_llama import QUESTIONS, VOCABULARY, tiny_base

SMALL: Json = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")


def tiny_family(family: str, folder: Path, seed: int = 0, **changes: Any) -> models.Base:
    """A small model of the family, all of whose weights are random: norms and biases too, which begin as 1 and 0."""
    import transformers

    if family == "llama":
        return tiny_base(folder, seed, **changes)
    torch.manual_seed(seed)
    kinds: dict[str, tuple[str, Json]] = {
        "qwen2": ("Qwen2", {"num_hidden_layers": 2, "tie_word_embeddings": True, "initializer_range": 0.3}),
        "qwen3": ("Qwen3", {"num_hidden_layers": 2, "head_dim": 32, "initializer_range": 0.3}),
        "gemma3": (
            "Gemma3",
            {
                "num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32,
                "initializer_range": 0.1,
            },
        ),
    }  # fmt: skip
    name, own = kinds[family]
    config = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
    model = getattr(transformers, f"{name}ForCausalLM")(config(**{**SMALL, **own, **changes}))
    with torch.no_grad():
        for part, values in model.named_parameters():
            if "norm" in part or part.endswith("bias"):
                values += 0.2 * torch.randn_like(values)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_gemma_tokenizer(folder) if family == "gemma3" else save_qwen_tokenizer(folder)
    return models.resolve_base(str(folder), folder.parent)


def tiny_gemma3_that_sees(folder: Path) -> models.Base:
    """A Gemma 3 as its sizes from 4B on are: a vision tower and a projector beside the decoder."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    text = SMALL | {"num_hidden_layers": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32}
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config: Any = Gemma3Config
    made: Any = Gemma3ForConditionalGeneration(config(text_config=text, vision_config=vision, mm_tokens_per_image=4))
    made.to(torch.bfloat16).save_pretrained(folder)
    save_gemma_tokenizer(folder)
    return models.resolve_base(str(folder), folder.parent)


def save_qwen_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer that cuts text as Qwen's does, learnt on the questions."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers import models as tokenizer_models
    from transformers import PreTrainedTokenizerFast

    learnt = Tokenizer(tokenizer_models.BPE())
    learnt.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learnt.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    learnt.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt.train_from_iterator(
        QUESTIONS, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learnt, eos_token=specials[2], pad_token=specials[0])
    tokenizer.chat_template = chat.CHATML
    tokenizer.save_pretrained(folder)


def save_gemma_tokenizer(folder: Path) -> None:
    """A SentencePiece tokenizer as transformers spells Gemma's: every split of every piece is a merge, in its order."""
    from tokenizers import AddedToken
    from transformers import GemmaTokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    newlines, spaces = ["\n\n", "\n\n\n"], [SPACE * 2, SPACE * 3]
    pieces = _learnt_pieces()
    letters = sorted({letter for question in QUESTIONS for letter in question.replace(" ", SPACE)} | {"\n", "é"})
    all_bytes = [f"<0x{at:02X}>" for at in range(256)]
    order = [*specials, *newlines, *spaces, *all_bytes, *pieces, *letters]
    vocabulary = {text: at for at, text in enumerate(dict.fromkeys(order))}
    merges = [
        (piece[:at], piece[at:])
        for piece in (*spaces, *newlines, *pieces)
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*newlines, *spaces)])
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' "
        "else message['role']) + '\\n' + message['content'] + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)


def _learnt_pieces(most: int = 150) -> list[str]:
    """Pieces in the order in which byte-pair encoding finds them in the questions, words begun by SPACE."""
    from collections import Counter
    from itertools import pairwise

    texts = [list(word) for question in QUESTIONS for word in (SPACE + question.replace(" ", f" {SPACE}")).split(" ")]
    pieces: list[str] = []
    while len(pieces) < most:
        pairs = Counter(pair for text in texts for pair in pairwise(text))
        (left, right), count = max(pairs.items(), key=lambda each: (each[1], each[0]))
        if count < 2:
            break
        pieces.append(left + right)
        texts = [_merge(text, left, right) for text in texts]
    return list(dict.fromkeys(pieces))


def _merge(text: list[str], left: str, right: str) -> list[str]:
    merged: list[str] = []
    for symbol in text:
        if merged and merged[-1] == left and symbol == right:
            merged[-1] = left + right
        else:
            merged.append(symbol)
    return merged
