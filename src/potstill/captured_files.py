"""The files of a folder of captured traffic, and one way to read them: JSON lines while they grow, Parquet afterwards.

`exchanges-NAME.jsonl` is appended to by one process, which holds a lock (flock) on it for as long as it lives. Once it
is closed it becomes `exchanges-NAME.parquet` (`potstill.serving.rotation`), a row an exchange, nested values as JSON
text; from the moment that this file exists the lines of the same name count for nothing. `feedback-NAME.jsonl` stays
as it is. Whoever rewrites or removes files holds the folder's own lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.errors import DamagedLine
from potstill.feedback_join import EXCHANGES, FEEDBACK
from potstill.records import Json

ROTATED = EXCHANGES.replace(".jsonl", ".parquet")
HEADS = (EXCHANGES.partition("*")[0], FEEDBACK.partition("*")[0])
LOCK, INDEX = ".capture.lock", "known-ids.sqlite"
TEXTS, NUMBERS, NESTED = ("id", "time"), ("latency_ms", "cost_usd"), ("request", "response", "metadata", "feedback")
COLUMNS = (*TEXTS, *NUMBERS, *NESTED)
ROWS_AT_ONCE = 1024


def is_captured(path: Path) -> bool:
    """Whether our server wrote this file (or it was compressed since)."""
    of_ours = path.name.startswith(HEADS) and not path.name.endswith(".partial")
    return of_ours and (".jsonl" in path.name or path.suffix == ".parquet")


def exchange_files(folder: Path) -> list[Path]:
    """The files whose exchanges count, sorted by name: no lines that stand in Parquet by now."""
    rotated = {path.stem: path for path in folder.glob(ROTATED)}
    return sorted([*rotated.values(), *(path for path in folder.glob(EXCHANGES) if path.stem not in rotated)])


def instead_of(files: Sequence[str]) -> list[str]:
    """Those of these addresses that count: no captured lines that stand in a Parquet file of them, none half made."""
    known = set(files)
    return [each for each in files if not (is_lines(each) and parquet_of(each) in known) and not _is_half_made(each)]


def _is_half_made(address: str) -> bool:
    name = address.rpartition("/")[2]
    return name.startswith(HEADS) and name.endswith(".partial")


def is_lines(address: str) -> bool:
    name = address.rpartition("/")[2]
    return name.startswith(HEADS[0]) and name.endswith(".jsonl")


def parquet_of(address: str) -> str:
    return address.removesuffix(".jsonl") + ".parquet"


def captured_lines(path: Path) -> Iterator[tuple[int, Json]]:
    """Number and content of every line or row; raises DamagedLine naming the line.

    What a killed server left unfinished (the last line of a file, without a line end) is passed over, as are blank
    lines: they were forgotten since.
    """
    if path.suffix == ".parquet":
        yield from enumerate(parquet_lines(path), 1)
        return
    import orjson

    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n") or line.isspace():
                continue
            try:
                found = orjson.loads(line)
            except orjson.JSONDecodeError as fault:
                raise DamagedLine(f"{path}:{number}: not JSON ({fault})") from fault
            if not isinstance(found, dict):
                raise DamagedLine(f"{path}:{number}: found {type(found).__name__}, expected an object")
            yield number, found


def parquet_lines(path: Path) -> Iterator[Json]:
    """The exchanges of a Parquet file, each as the object that its line held."""
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    yield {
                        name: orjson.loads(value) if name in NESTED and value is not None else value
                        for name, value in row.items()
                    }
    except (pa.ArrowInvalid, OSError) as fault:
        raise DamagedLine(f"{path}: not Parquet to its end ({fault})") from fault


def ids_of(path: Path) -> list[str]:
    """The ids of a Parquet file alone."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        found: list[str] = file.read(columns=["id"])["id"].to_pylist()
    return found


def table_of(lines: Sequence[Json]) -> Any:
    """An Arrow table of exchanges."""
    import orjson
    import pyarrow as pa

    columns: dict[str, Any] = {name: pa.array([each.get(name) for each in lines], pa.string()) for name in TEXTS}
    columns |= {name: pa.array([each.get(name) for each in lines], pa.float64()) for name in NUMBERS}
    for name in NESTED:
        texts = [None if each.get(name) is None else orjson.dumps(each[name]).decode() for each in lines]
        columns[name] = pa.array(texts, pa.large_string())
    return pa.table({name: columns[name] for name in COLUMNS})


def write_table(path: Path, tables: Iterator[Any]) -> int:
    """Write a Parquet file (zstd) beside `path` and put it there whole; returns its rows. Raises OSError."""
    import pyarrow.parquet as pq

    partial, rows = path.with_name(path.name + ".partial"), 0
    schema = table_of([]).schema
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    return rows


def put_in_place(path: Path) -> None:
    """The file that `write_table` wrote beside takes its place, on the disk when this returns."""
    os.replace(path.with_name(path.name + ".partial"), path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """The names in a folder, on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Nobody else rewrites or removes files here while the block runs. What a kill left half made is removed."""
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in folder.glob(f"{HEADS[0]}*.partial"):
            path.unlink(missing_ok=True)
        yield


@contextmanager
def closed_lines(path: Path) -> Iterator[bool]:
    """Whether no living process appends to this file; none begins to while the block runs."""
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
