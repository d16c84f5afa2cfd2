"""The files of an artifact, and the GGUF of the untrained base that evaluation compares them with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from potstill import __version__, chat, models
from potstill.contract import Contract
from potstill.errors import DamagedInput
from potstill.gguf_file import write_gguf
from potstill.gguf_quantise import Quantisation
from potstill.progress import say
from potstill.records import Json
from potstill.stage import Upstream

from .formats import FORMATS, Source
from .merge import FolderWeights, student_weights

# Quantisations whose kernels weigh columns, when asked to; docs/export.md says why it is not the default.
WEIGHED: tuple[Quantisation, ...] = ("q6_k", "q5_k_m", "q4_k_m")


def source_of(base: models.Base, upstream: Upstream, contract: Contract, name: str, importance_rows: int = 0) -> Source:
    """What the writers draw on: the base with what training left folded in."""
    trained = upstream["adapter"]
    return Source(
        weights=student_weights(trained, base.path),
        config=read_config(base.path),
        base=base.path,
        trained=trained,
        tokenizer=trained / "tokenizer",
        contract=contract,
        name=name,
        dataset=upstream["dataset"],
        importance_rows=importance_rows,
    )


def write_formats(formats: Sequence[str], source: Source, out: Path) -> dict[str, Json]:
    """One file or folder a format; returns what each holds, by format."""
    facts: dict[str, Json] = {}
    for each in dict.fromkeys(formats):
        spec = FORMATS[each]
        say(f"writing {spec.path}")
        facts[each] = {"file": spec.path, "engine": spec.engine, **spec.write(source, out / spec.path)}
    return facts


def write_gguf_file(source: Source, out: Path, quantisation: Quantisation) -> Json:
    """One GGUF of the merged weights; says which tensors could not have the type that the format means for them."""
    importance = source.importance if quantisation in WEIGHED else {}
    written = write_gguf(
        source.weights, source.config, source.tokenizer, source.contract.chat_template, out, quantisation, source.name,
        importance,
    )  # fmt: skip
    for line in fallback_lines(written.fallbacks):
        say(f"{out.name}: {line}")
    rows = min(source.importance_rows, len(source.rows)) if importance else 0
    return {"quantisation": quantisation, **asdict(written), "importance_rows": rows}


def fallback_lines(fallbacks: Mapping[str, Json]) -> list[str]:
    """Fallbacks in words, the layers of one kind of tensor together."""
    kinds: dict[tuple[str, str, str, int], int] = {}
    for name, each in fallbacks.items():
        key = (re.sub(r"^blk\.\d+\.", "", name), each["wanted"], each["written"], each["row"])
        kinds[key] = kinds.get(key, 0) + 1
    return [
        f"{name} ({count}) is {written} instead of {wanted}: a row of {row} does not divide into its blocks"
        for (name, wanted, written, row), count in kinds.items()
    ]


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
