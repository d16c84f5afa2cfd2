"""The formats that export can write. Adding one is an entry of FORMATS and its name in FormatName.

A writer is given the merged weights and all that belongs to them (Source) and a path inside the artifact that does not
exist yet, a file or a folder; it returns the facts of what it wrote, at least `size_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from potstill.contract import Contract
from potstill.dataset import read_examples
from potstill.records import Example, Json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from potstill.gguf_quantise import Quantisation

FormatName = Literal[
    "gguf-f16", "gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "safetensors-bf16", "w4a16", "fp8"
]  # fmt: skip
ServedBy = Literal["llama_cpp", "transformers"]


@dataclass(frozen=True)
class Source:
    """What a writer may draw on.

    `weights` are the merged tensors by their transformers names, read one at a time; `config` is the content of the
    base's config.json; `trained` is training's folder, its tokenizer in `tokenizer`.
    `importance_rows` training rows weigh the quantisation of the formats that gain by it (0: none).
    """

    weights: Mapping[str, torch.Tensor]
    config: Json
    base: Path
    trained: Path
    tokenizer: Path
    contract: Contract
    name: str
    dataset: Path | None = None
    importance_rows: int = 0

    @cached_property
    def rows(self) -> tuple[Example, ...]:
        """The training rows, for those formats that look at activations; empty without a dataset."""
        return tuple(read_examples(self.dataset, "train")) if self.dataset else ()

    @cached_property
    def importance(self) -> Mapping[str, NDArray[np.float32]]:
        """How much each column of each matrix matters, seen once for all formats."""
        from .importance import column_importance

        return column_importance(self, self.importance_rows) if self.importance_rows else {}


@dataclass(frozen=True, slots=True)
class FormatSpec:
    """One format: `path` is the file's or folder's name in the artifact, `engine` what loads and serves it."""

    name: FormatName
    path: str
    engine: ServedBy
    write: Callable[[Source, Path], Json]


def _gguf(name: FormatName, quantisation: Quantisation) -> FormatSpec:
    return FormatSpec(name, f"model-{quantisation}.gguf", "llama_cpp", partial(_write_gguf, quantisation))


def _write_gguf(quantisation: Quantisation, source: Source, out: Path) -> Json:
    from .write import write_gguf_file

    return write_gguf_file(source, out, quantisation)


def _folder(name: FormatName, path: str, write: Callable[[Source, Path], Json]) -> FormatSpec:
    return FormatSpec(name, path, "transformers", write)


def _write_bf16(source: Source, out: Path) -> Json:
    from .folder import write_bf16

    return write_bf16(source, out)


def _write_w4a16(source: Source, out: Path) -> Json:
    from .folder_quantise import write_w4a16

    return write_w4a16(source, out)


def _write_fp8(source: Source, out: Path) -> Json:
    from .folder_quantise import write_fp8

    return write_fp8(source, out)


FORMATS: dict[str, FormatSpec] = {
    each.name: each
    for each in (
        _gguf("gguf-f16", "f16"),
        _gguf("gguf-q8_0", "q8_0"),
        _gguf("gguf-q6_k", "q6_k"),
        _gguf("gguf-q5_k_m", "q5_k_m"),
        _gguf("gguf-q4_k_m", "q4_k_m"),
        _folder("safetensors-bf16", "model-bf16", _write_bf16),
        _folder("w4a16", "model-w4a16", _write_w4a16),
        _folder("fp8", "model-fp8", _write_fp8),
    )
}
