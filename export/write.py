"""The files of an artifact, and the GGUF of the untrained base that evaluation compares them with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from potstill import __version__, chat, models
from potstill.contract import Contract
from potstill.errors import DamagedInput
from potstill.gguf_file import Quantisation, write_gguf
from potstill.progress import say
from potstill.records import Json

from .merge import FolderWeights, student_weights

QUANTISATIONS: dict[str, Quantisation] = {"gguf-f16": "f16", "gguf-q8_0": "q8_0"}


def write_formats(
    formats: Sequence[str], base: Path, adapter: Path, contract: Contract, out: Path, name: str
) -> dict[str, Json]:
    """One file a format from what training left in `adapter`; returns what each holds, by format."""
    weights = student_weights(adapter, base)
    config, tokenizer = read_config(base), adapter / "tokenizer"
    facts: dict[str, Json] = {}
    for each in dict.fromkeys(formats):
        quantisation = QUANTISATIONS[each]
        file = f"model-{quantisation}.gguf"
        say(f"writing {file}")
        written = write_gguf(weights, config, tokenizer, contract.chat_template, out / file, quantisation, name)
        facts[each] = {"file": file, "quantisation": quantisation, **asdict(written)}
    return facts


def base_gguf(base: models.Base, cache: Path) -> Path:
    """The untrained base as Q8_0 with its own chat template: made once, then taken from the cache."""
    tokenizer = chat.load_tokenizer(base.path)
    path = cache / "gguf" / f"{base.path.name}-{base.digest[:10]}-q8_0-{__version__}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        say(f"writing the untrained base as {path.name} (once)")
        write_gguf(
            FolderWeights(base.path),
            read_config(base.path),
            base.path,
            str(tokenizer.chat_template),
            path,
            "q8_0",
            base.spec,
        )
    return path


def read_config(folder: Path) -> Json:
    """config.json of a transformers folder; raises DamagedInput when it cannot be read."""
    try:
        found: Json = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as fault:
        raise DamagedInput(f"{folder / 'config.json'}: cannot be read ({fault}); expected a model folder") from fault
    return found
