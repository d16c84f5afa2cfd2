"""Texts looked for in the bytes of any file, however many: eight bytes of each tell where to look closer."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.forgetting.reading import opened

BEGINNING = 60  # characters of a text that are looked for: pages cut long ones
WORD = 8
PIECE = 8 * 2**20
OVERLAP = 4096


@dataclass
class Needles:
    """The beginnings of texts and whole ids as they may stand in text, JSON or HTML."""

    forms: dict[bytes, list[bytes]] = field(default_factory=dict)
    short: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, texts: Iterable[str], ids: Iterable[str]) -> Needles:
        found = cls()
        for text in texts:
            begins = text[:BEGINNING]
            for form in {begins, *(json.dumps(begins, ensure_ascii=each)[1:-1] for each in (True, False)),
                         html.escape(begins), begins.replace("_", "_<wbr>").replace(",", ",<wbr>")}:  # fmt: skip
                found._add(form.encode("utf-8", "surrogatepass"))
        for each in ids:
            plain = each.encode("utf-8", "surrogatepass")
            for whole in [plain] if len(plain) >= WORD else [b'"' + plain + b'"', b"&#34;" + plain + b"&#34;"]:
                found._add(whole)
        return found

    def _add(self, form: bytes) -> None:
        if len(form) < WORD:
            if form not in self.short:
                self.short.append(form)
        elif form not in (known := self.forms.setdefault(form[:WORD], [])):
            known.append(form)

    def __bool__(self) -> bool:
        return bool(self.forms or self.short)

    def within(self, data: bytes) -> bool:
        """Whether any of them stands in these bytes."""
        import numpy as np

        if any(each in data for each in self.short):
            return True
        if len(data) < WORD or not self.forms:
            return False
        heads = np.array([int.from_bytes(each, "little") for each in self.forms], np.uint64)
        windows: Any = np.ndarray((len(data) - WORD + 1,), "<u8", data, strides=(1,))
        for at in np.flatnonzero(np.isin(windows, heads)).tolist():
            if any(data.startswith(each, at) for each in self.forms[data[at : at + WORD]]):
                return True
        return False

    def in_text(self, text: str) -> bool:
        return self.within(text.encode("utf-8", "surrogatepass"))

    def in_file(self, path: Path) -> bool:
        """Whether any of them stands in a file, decompressed where it is gzip or zstd; in a Parquet file's cells."""
        if path.suffix == ".parquet":
            return self._in_table(path)
        rest = b""
        with opened(path) as stream:
            while piece := stream.read(PIECE):
                if self.within(rest + piece):
                    return True
                rest = piece[-OVERLAP:]
        return False

    def _in_table(self, path: Path) -> bool:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                return any(self.in_text(json.dumps(batch.to_pylist(), ensure_ascii=False, default=str))
                           or self.in_text("\n".join(str(v) for c in batch.columns for v in c.to_pylist()))
                           for batch in file.iter_batches(1024))  # fmt: skip
        except pa.ArrowInvalid:
            return False
