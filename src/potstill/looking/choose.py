"""Which rows of a large table a page shows, and reading just those in one pass, memory flat in the table."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from potstill.records import Json

Name = TypeVar("Name")
BATCH = 1024  # rows; agents' rows are some 20 KB each


def even(total: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to total - 1, at even distances, the same every time."""
    return list(range(total)) if total <= most else [at * total // most for at in range(most)]


def shares(sizes: Mapping[Name, int], most: int) -> dict[Name, int]:
    """How many of each group to show: small groups whole, the others alike, `most` together."""
    given: dict[Name, int] = {}
    left = most
    for at, (name, size) in enumerate(sorted(sizes.items(), key=lambda each: each[1])):
        given[name] = min(size, left // (len(sizes) - at))
        left -= given[name]
    return given


def batches(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Record batches of a Parquet file, each with the number of its first row; nothing where there is no file."""
    import pyarrow.parquet as pq

    if not path.is_file():
        return
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH, columns=list(columns)):
            yield start, batch
            start += len(batch)


def height(path: Path) -> int:
    """Rows of a Parquet file; 0 where there is none."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows) if path.is_file() else 0


def picked(
    path: Path, columns: Sequence[str], numbers: Sequence[int], ids: Collection[str] = ()
) -> Iterator[tuple[int, Json]]:
    """The rows with these (sorted) numbers or with these ids, each with its number, in the order of the file."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(ids), pa.string())
    for start, batch in batches(path, columns):
        offsets = {at - start for at in numbers[bisect_left(numbers, start) : bisect_left(numbers, start + len(batch))]}
        if len(wanted):
            offsets.update(pc.indices_nonzero(pc.is_in(batch.column("id"), value_set=wanted)).to_pylist())
        order = sorted(offsets)
        for at, row in zip(order, batch.take(pa.array(order, pa.int64())).to_pylist() if order else (), strict=True):
            yield start + at, row
