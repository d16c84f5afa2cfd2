"""Models of known shapes with random weights, written as folders that every candidate can load.

Speed and memory depend on a model's shape, not on what it has learnt, so nothing need be downloaded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

PAD, END = "<pad>", "<end>"
QWEN3 = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151_936, "rope_theta": 1e6}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True,
        "initializer_range": 0.3,
    },
    "1.5b": {  # Qwen2.5-1.5B's sizes; without its biases on query, key and value it is a Llama
        "model_type": "llama", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True,
    },
    "4b": QWEN3 | {  # Qwen3-4B
        "model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "tie_word_embeddings": True,
    },
    "8b": QWEN3 | {  # Qwen3-8B
        "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "tie_word_embeddings": False,
    },
    "llama-8b": {  # Llama-3.1-8B
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False,
        "rope_theta": 500_000.0,
    },
}  # fmt: skip


def config_of(shape: str) -> Any:
    """The transformers configuration of a shape."""
    from transformers import LlamaConfig, Qwen3Config

    values = dict(SHAPES[shape])
    made: Any = {"llama": LlamaConfig, "qwen3": Qwen3Config}[values.pop("model_type")]
    theta = values.pop("rope_theta", 10_000.0)
    return made(
        **values,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )


def build(shape: str, folder: Path, device: str, seed: int = 0) -> Path:
    """A folder with the shape's config, random bf16 weights and a tokenizer of two tokens; made once."""
    import torch
    import transformers

    marker = folder / "shape.json"
    wanted = json.dumps(SHAPES[shape] | {"seed": seed}, sort_keys=True)
    if marker.is_file() and marker.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    untyped: Any = transformers.AutoModelForCausalLM
    with torch.device(device):
        model = untyped.from_config(config_of(shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    marker.write_text(wanted)
    return folder


def _tokenizer() -> Any:
    """A tokenizer that knows padding and the end: rows come as ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    untyped: Any = PreTrainedTokenizerFast
    words = Tokenizer(models.WordLevel({PAD: 0, END: 1}, unk_token=PAD))
    return untyped(tokenizer_object=words, pad_token=PAD, eos_token=END, unk_token=PAD)
