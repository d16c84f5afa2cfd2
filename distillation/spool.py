"""Blocks on their way through `distill`, on disk (redacted already), read back a block or a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def spool_path(scratch: Path, kind: str, block: int) -> Path:
    return scratch / f"{kind}-{block:010d}.arrow"


def write_spool(scratch: Path, kind: str, block: int, table: pa.Table, *, mapped: bool = False) -> None:
    """Write one block; `mapped` leaves it uncompressed, so that single rows can be read without the rest."""
    import pyarrow as pa

    options = pa.ipc.IpcWriteOptions(compression=None if mapped else "lz4")
    with (
        pa.OSFile(str(spool_path(scratch, kind, block)), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)


def read_spool(scratch: Path, kind: str, block: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One block, or some of its columns."""
    import pyarrow as pa

    with pa.memory_map(str(spool_path(scratch, kind, block))) as source:
        table = pa.ipc.open_file(source).read_all()
    return table.select(columns) if columns is not None else table


@lru_cache(maxsize=8)
def _open(path: str) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(path)).read_all()


def cells(scratch: Path, kind: str, column: str, rows: Sequence[tuple[int, int]]) -> list[Any]:
    """One column's cells by (block, offset), in the order asked; blocks are opened once when rows come sorted."""
    return [_open(str(spool_path(scratch, kind, block))).column(column)[at].as_py() for block, at in rows]


def forget_spool() -> None:
    """Let go of the blocks that are open: another run may have put others where they lie."""
    _open.cache_clear()
