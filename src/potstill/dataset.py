"""Reading and writing the splits of a dataset folder. The test split is sealed: only evaluation may open it.

A folder holds `train.parquet`, `validation.parquet`, `sealed/test.parquet`, `rejections.parquet`,
`card.md`, `manifest.json`. Messages, tools and metadata are JSON columns, so that any tool can read the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from potstill.errors import SealedSplit
from potstill.records import Example, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

OpenSplit = Literal["train", "validation"]
JSON_COLUMNS = ("messages", "full_messages", "tools", "metadata")
SEALED = Path("sealed") / "test.parquet"


def example_schema() -> pa.Schema:
    """The columns of a split, one a field of Example, in its order."""
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    types = {
        "corrected": pa.bool_(), "weight": number, "count": whole, "cluster": whole, "prompt_tokens": whole,
        "completion_tokens": whole, "latency_ms": number, "cost_usd": number,
    }  # fmt: skip
    return pa.schema([(each.name, types.get(each.name, text)) for each in fields(Example)])


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write examples as Parquet (zstd); returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for example in examples:
        row = {each.name: getattr(example, each.name) for each in fields(Example)}
        for column in JSON_COLUMNS:
            row[column] = canonical_json(row[column])
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=example_schema()), path, compression="zstd")
    return len(rows)


def _read(path: Path) -> list[Example]:
    import pyarrow.parquet as pq

    examples = []
    for row in pq.read_table(path).to_pylist():
        for column in JSON_COLUMNS:
            row[column] = json.loads(row[column])
        examples.append(Example(**row))
    return examples


def read_examples(dataset: Path, split: OpenSplit) -> list[Example]:
    """The rows of an open split, in their stored order; raises SealedSplit for the test split."""
    if split not in ("train", "validation"):
        raise SealedSplit(f"split {split!r} is sealed: only evaluation reads it; train and validation are open")
    return _read(dataset / f"{split}.parquet")


def read_sealed(dataset: Path) -> list[Example]:
    """The held-out rows. A test keeps every stage but evaluation from calling this."""
    return _read(dataset / SEALED)
