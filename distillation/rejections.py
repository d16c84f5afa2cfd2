"""Every row that was left out, with the step and the reason: nothing is thrown away in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from potstill.rejections import kind_of

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("id", "source", "line", "step", "reason", "row")


def rejected_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.int64() if name == "line" else pa.string()) for name in COLUMNS])


def rejected_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rejected rows as a table: `row` is the (redacted) text or JSON of what was left out."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=rejected_schema())


class Rejections:
    """Writes rejected rows to a Parquet file as they come, counts their reasons, remembers the first damaged one."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(path, rejected_schema(), compression="zstd")
        self._kinds: Counter[str] = Counter()
        self.rows = 0
        self.first_damaged: str | None = None

    def __enter__(self) -> Rejections:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def add(self, table: pa.Table) -> None:
        """Take a table of rejected rows (`rejected_schema`)."""
        if not len(table):
            return
        self._writer.write_table(table)
        self.rows += len(table)
        steps, reasons = table.column("step").to_pylist(), table.column("reason").to_pylist()
        self._kinds.update(map(kind_of, steps, reasons))
        if self.first_damaged is None and "damaged" in steps:
            row = table.slice(steps.index("damaged"), 1).to_pylist()[0]
            self.first_damaged = f"{row['source']}:{row['line']}: {row['reason']}"

    def count(self, kind: str, rows: int) -> None:
        """Count rows of which nothing may be kept."""
        if rows:
            self._kinds[kind] += rows

    def reasons(self) -> dict[str, int]:
        """How many rows each step left out for each kind of reason (what follows a colon is the row's own)."""
        return dict(sorted(self._kinds.items(), key=lambda each: (-each[1], each[0])))
