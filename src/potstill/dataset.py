"""Reading and writing the splits of a dataset folder. The test split is sealed: only evaluation may open it.

A folder holds `train.parquet`, `validation.parquet`, `sealed/test.parquet`, `rejections.parquet`, `card.md`,
`manifest.json`, and, where the log shows any, `preferences.parquet` and `opinions.parquet` (of the open splits).
Messages, tools and metadata are JSON columns, so that any tool can read the rest; their keys stay in the log's order,
because templates write tools and arguments as they stand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from potstill.errors import SealedSplit
from potstill.preferences import Opinion, Preference
from potstill.records import Example

if TYPE_CHECKING:
    import pyarrow as pa

OpenSplit = Literal["train", "validation"]
JSON_COLUMNS = ("messages", "full_messages", "tools", "metadata")
PREFERENCES, OPINIONS = "preferences.parquet", "opinions.parquet"
Judged = TypeVar("Judged", Preference, Opinion)
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
            row[column] = _json(row[column])
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=example_schema()), path, compression="zstd")
    return len(rows)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_preferences(
    dataset: Path, pairs: Mapping[OpenSplit, Sequence[Preference]], opinions: Mapping[OpenSplit, Sequence[Opinion]]
) -> dict[str, int]:
    """Write `preferences.parquet` and `opinions.parquet` with a `split` column; returns how many of each.

    Raises SealedSplit when rows of another split than train and validation are given.
    """
    return {
        "preferences": _write_judged(dataset / PREFERENCES, Preference, pairs),
        "opinions": _write_judged(dataset / OPINIONS, Opinion, opinions),
    }


def _write_judged(path: Path, kind: type[Judged], rows_of: Mapping[OpenSplit, Sequence[Judged]]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in rows_of:
        refuse_sealed(split)
    types: list[tuple[str, Any]] = [
        (each.name, pa.bool_() if each.name == "desirable" else pa.string()) for each in fields(kind)
    ]
    rows = [{**asdict(each), "split": split} for split, found in rows_of.items() for each in found]
    for row in rows:
        row.update({column: _json(row[column]) for column in JSON_COLUMNS if column in row})
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([*types, ("split", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
    return len(rows)


def read_preferences(dataset: Path, split: OpenSplit) -> list[Preference]:
    """The pairs of an open split, for DPO (`potstill.preferences.as_dpo_row`); none where the folder has none."""
    return _read_judged(dataset / PREFERENCES, Preference, split)


def read_opinions(dataset: Path, split: OpenSplit) -> list[Opinion]:
    """The single opinions of an open split, for KTO (`potstill.preferences.as_kto_row`); none where there are none."""
    return _read_judged(dataset / OPINIONS, Opinion, split)


def _read_judged(path: Path, kind: type[Judged], split: OpenSplit) -> list[Judged]:
    import pyarrow.parquet as pq

    refuse_sealed(split)
    found = []
    for row in pq.read_table(path, filters=[("split", "=", split)]).to_pylist() if path.is_file() else ():
        del row["split"]
        found.append(kind(**row | {column: json.loads(row[column]) for column in JSON_COLUMNS if column in row}))
    return found


def refuse_sealed(split: str) -> None:
    """Raise SealedSplit for any split that learning may not see."""
    if split not in ("train", "validation"):
        raise SealedSplit(f"split {split!r} is sealed: only evaluation reads it; train and validation are open")


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
    refuse_sealed(split)
    return _read(dataset / f"{split}.parquet")


def read_sealed(dataset: Path) -> list[Example]:
    """The held-out rows. A test keeps every stage but evaluation from calling this."""
    return _read(dataset / SEALED)
