"""Every row that was left out, with the step and the reason: nothing is thrown away in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from potstill.records import Json, canonical_json

from .read import Damaged

COLUMNS = ("id", "source", "line", "step", "reason", "row")


@dataclass
class Rejections:
    """Rows in the order in which they were left out."""

    rows: list[Json] = field(default_factory=list)

    def add(self, identity: str, step: str, reason: str, row: Json) -> None:
        """An exchange (already redacted) and why it was left out."""
        self.rows.append(
            {"id": identity, "source": None, "line": None, "step": step, "reason": reason, "row": canonical_json(row)}
        )

    def add_line(self, damaged: Damaged, text: str) -> None:
        """A line that could not be read, with its place and its (redacted) text."""
        self.rows.append(
            {
                "id": None,
                "source": damaged.source,
                "line": damaged.line,
                "step": "damaged" if damaged.damaged else "read",
                "reason": damaged.reason,
                "row": text,
            }
        )

    def first_damaged(self) -> str:
        """Place and reason of the first damaged line."""
        first = next(each for each in self.rows if each["step"] == "damaged")
        return f"{first['source']}:{first['line']}: {first['reason']}"

    def reasons(self) -> dict[str, int]:
        """How many rows each step left out for each kind of reason (what follows a colon is the row's own)."""
        kinds = Counter(f"{each['step']}: {_kind(each['reason'])}" for each in self.rows)
        return dict(kinds.most_common())

    def write(self, path: Path) -> None:
        """Write them as Parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"line": pa.int64()}
        schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
        pq.write_table(pa.Table.from_pylist(self.rows, schema=schema), path, compression="zstd")


def _kind(reason: str) -> str:
    head = reason.partition(":")[0]
    return "near-duplicate of a kept row" if head.startswith("near-duplicate of") else head
