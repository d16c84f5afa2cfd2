"""A transformers folder of the student: what vLLM, TGI and `AutoModelForCausalLM.from_pretrained` load.

config.json, generation_config.json, the tokenizer with the chat template of training, and the weights in bf16 in one
model.safetensors, or in shards of at most 5 GB with an index. Read one tensor at a time, so that writing needs the
memory of one shard. `Encode` may turn a matrix into something smaller (see folder_quantise); all else is bf16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import DamagedInput
from potstill.manifest import write_atomically
from potstill.progress import track
from potstill.records import Json

if TYPE_CHECKING:
    import torch

    from .formats import Source

SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
HEAD = "lm_head.weight"
Encode = Callable[[str, "torch.Tensor"], "dict[str, torch.Tensor] | None"]


def write_bf16(source: Source, out: Path) -> Json:
    """The merged weights in bf16, unquantised."""
    return {"quantisation": "bf16", **write_folder(source, out, lambda name, weight: None, {})}


def write_folder(source: Source, out: Path, encode: Encode, quantization_config: Json) -> Json:
    """Write the folder `out`; returns its size, the bytes of its tensors by type, and the number of files.

    `encode` gives the tensors that stand for one weight, by their full names, or None for one that stays bf16.
    """
    out.mkdir(parents=True)
    weights = without_tied_head(source.weights, source.config)
    held, files = write_shards(_encoded(weights, encode), out)
    write_json(out / "config.json", model_config(source.config, quantization_config))
    write_json(out / "generation_config.json", generation_config(source))
    copy_tokenizer(source, out)
    return {
        "size_bytes": sum(each.stat().st_size for each in out.iterdir()),
        "tensor_bytes": held,
        "weight_files": files,
    }


def without_tied_head(weights: Mapping[str, torch.Tensor], config: Json) -> Mapping[str, torch.Tensor]:
    """The weights without an output matrix that is the embedding: loaders tie it, and vLLM refuses a second copy."""
    if not config.get("tie_word_embeddings", False):
        return weights
    return _Without(weights, HEAD)


class _Without(Mapping[str, "torch.Tensor"]):
    """A mapping with one name left out; tensors are still read when asked for."""

    def __init__(self, weights: Mapping[str, torch.Tensor], name: str) -> None:
        self._weights = weights
        self._names = [each for each in weights if each != name]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _encoded(weights: Mapping[str, torch.Tensor], encode: Encode) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for name in track(iter(weights), "tensors", len(weights)):
        weight = weights[name]
        parts = encode(name, weight)
        if parts is None:
            parts = {name: weight.to(torch.bfloat16) if weight.is_floating_point() else weight}
        yield from ((part, each.contiguous()) for part, each in parts.items())


def write_shards(
    tensors: Iterator[tuple[str, torch.Tensor]], out: Path, shard_bytes: int = SHARD_BYTES
) -> tuple[dict[str, int], int]:
    """Write tensors as they come; returns bytes by type and how many files. More than one file brings an index.

    A file holds at most `shard_bytes`, unless one tensor alone is larger. Names are those that transformers writes.
    """
    held: dict[str, int] = {}
    shards: list[list[str]] = []
    waiting: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if waiting and size + tensor.nbytes > shard_bytes:
            shards.append(_write_shard(waiting, out, len(shards)))
            waiting, size = {}, 0
        waiting[name] = tensor
        size += tensor.nbytes
        kind = str(tensor.dtype).removeprefix("torch.")
        held[kind] = held.get(kind, 0) + tensor.nbytes
    shards.append(_write_shard(waiting, out, len(shards)))
    _name_shards(shards, sum(held.values()), out)
    return held, len(shards)


def _write_shard(tensors: dict[str, torch.Tensor], out: Path, number: int) -> list[str]:
    from safetensors.torch import save_file

    save_file(tensors, out / _part(number), metadata={"format": "pt"})
    return list(tensors)


def _part(number: int) -> str:
    return f"part-{number}.safetensors"


def _name_shards(shards: list[list[str]], total_bytes: int, out: Path) -> None:
    """Give the files their names, which tell how many there are, so they can be known only at the end."""
    if len(shards) == 1:
        (out / _part(0)).rename(out / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (out / _part(number)).rename(out / file)
        where |= dict.fromkeys(names, file)
    write_json(out / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(where.items()))})


def model_config(base: Json, quantization_config: Json) -> Json:
    """The base's config.json for these weights: bf16, quantised as `quantization_config` says if it says anything."""
    config = {key: value for key, value in base.items() if key not in ("quantization_config", "_name_or_path")}
    if not config.get("architectures"):
        raise DamagedInput(
            "config.json of the base names no architecture, so nothing could load an exported folder; "
            'add "architectures", as ["LlamaForCausalLM"], and train again'
        )
    # `torch_dtype` and `rope_theta` are what loaders before transformers 5 read: without the latter they would take
    # 10,000 for it and say nothing.
    config |= {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    return config | ({"quantization_config": quantization_config} if quantization_config else {})


def generation_config(source: Source) -> Json:
    """Greedy, ending where training ended an answer, as long as the contract allows.

    A base's own sampling settings would otherwise become the defaults of a server that knows nothing of the evidence.
    """
    from potstill import chat

    path = source.base / "generation_config.json"
    base: Json = json.loads(path.read_text()) if path.is_file() else {}
    tokenizer = chat.load_tokenizer(source.tokenizer)
    stops = [tokenizer.convert_tokens_to_ids(each) for each in source.contract.stop]
    known: Any = base.get("eos_token_id", source.config.get("eos_token_id"))
    known = known if isinstance(known, list) else [known]
    ends = list(dict.fromkeys(each for each in [*stops, *known] if isinstance(each, int)))
    kept = {key: base[key] for key in ("bos_token_id", "pad_token_id") if base.get(key) is not None}
    return kept | {"eos_token_id": ends, "do_sample": False, "max_new_tokens": source.contract.max_tokens}


def copy_tokenizer(source: Source, out: Path) -> None:
    """The tokenizer files as training left them; raises DamagedInput when there are none."""
    found = [name for name in TOKENIZER_FILES if (source.tokenizer / name).is_file()]
    if TOKENIZER_CONFIG not in found:
        raise DamagedInput(f"{source.tokenizer}: holds no {TOKENIZER_CONFIG}; train again")
    for name in found:
        shutil.copyfile(source.tokenizer / name, out / name)
    config: Json = json.loads((out / TOKENIZER_CONFIG).read_text())
    if config.get("tokenizer_class") == "TokenizersBackend":  # transformers 5's name for it, unknown to 4
        write_json(out / TOKENIZER_CONFIG, config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def write_json(path: Path, data: Json) -> None:
    write_atomically(path, json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n")
