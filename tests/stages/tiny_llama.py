"""Tiny Llama models with random weights and a tokenizer of SmolLM2's kind, for tests of export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from export import merge, write
from potstill import chat, models
from potstill.engine import Engine
from potstill.gguf_file import write_gguf
from potstill.records import Json

VOCABULARY = 512
QUESTIONS = [
    "What is the capital of France?", "Name three colours.", "What is 2 + 2?", "Who wrote Hamlet?", "Say hello.",
    "What do bees make?", "Which planet is red?", "Is water wet?", "What is the opposite of hot?", "Count to five.",
    "What is the largest ocean?", "How many legs has a spider?", "Name a fruit.", "What language is spoken in Brazil?",
    "Translate 'cat' to French.", "What is the boiling point of water?", "Who painted the Mona Lisa?", "What is H2O?",
    "How many days are in a week?", "What colour is the sky?",
]  # fmt: skip


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of SmolLM2's kind, learnt on the questions, with a template of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    learnt = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    learnt.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt.train_from_iterator(
        QUESTIONS, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learnt,
        bos_token=specials[1],
        eos_token=specials[2],
        unk_token=specials[0],
        pad_token=specials[2],
    )
    tokenizer.chat_template = chat.CHATML.replace("message['content']", "message['content'] | trim")
    tokenizer.save_pretrained(folder)


def tiny_base(folder: Path, seed: int = 0, **changes: Any) -> models.Base:
    """A two-layer Llama with random weights, large enough to tell tokens apart, and a tokenizer to go with it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    values: Json = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**values, **changes})).to(torch.bfloat16)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return models.resolve_base(str(folder), folder.parent)


def gguf_of(base: models.Base, out: Path, quantisation: Any = "f16", template: str | None = None) -> Path:
    """The base alone as a GGUF."""
    tokenizer = chat.load_tokenizer(base.path)
    write_gguf(
        merge.FolderWeights(base.path), write.read_config(base.path), base.path,
        str(tokenizer.chat_template) if template is None else template, out, quantisation, "test",
    )  # fmt: skip
    return out


def difference(file: Path, prompts: list[list[int]], wanted: Any) -> float:
    """The largest difference between the file's three most likely next tokens and what was wanted for them."""
    import httpx

    found = []
    with Engine.start(file, parallel=1, context=256) as engine:
        for prompt in prompts:
            # Probabilities are those before the grammar; without it, half a character or an end is given none.
            body = {"prompt": prompt, "n_predict": 1, "n_probs": 3, "grammar": 'root ::= "a"'}
            answer = httpx.post(f"{engine.url}/completion", json=body, timeout=60).json()
            found.append(
                [(each["id"], each["logprob"]) for each in answer["completion_probabilities"][0]["top_logprobs"]]
            )
    return max(
        abs(float(value) - float(wanted[row, token])) for row, pairs in enumerate(found) for token, value in pairs
    )
