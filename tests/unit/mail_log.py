"""A made-up log of a bank's mail, and the rows of the dataset that it was distilled to."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from distillation.passes import Work
from distillation.rejections import Rejections
from distillation.run import Settings, read_logs
from distillation.runtime import LocalRuntime
from distillation.spool import read_spool
from potstill.dataset import read_examples, read_sealed
from potstill.records import Example, Exchange, Json

LABELS = ["card", "cash", "loan"]
SYSTEM = "You sort a bank's mail. Answer with one of: card, cash, loan."
WORDS = [
    "apple",
    "bridge",
    "candle",
    "desert",
    "engine",
    "forest",
    "garden",
    "harbour",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "market",
    "needle",
    "orange",
    "pencil",
    "quarry",
    "ribbon",
    "saddle",
    "temple",
    "umbrella",
    "valley",
    "window",
    "yellow",
    "zebra",
    "anchor",
    "basket",
    "circle",
    "dragon",
    "eleven",
]
Whole = Callable[..., tuple[Json, Path]]


def said(seed: int) -> str:
    """A message that is like no other: fourteen words, drawn by the seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=14))


def exchange(at: int, label: str | None = None, text: str | None = None, **changes: Any) -> Json:
    """A good line of a log; `metadata` and other fields by name."""
    answer = LABELS[at % 3] if label is None else label
    message = {"role": "assistant", "content": answer}
    line: Json = {
        "id": f"x{at:05d}",
        "time": "2026-01-05T08:00:00Z",
        "request": {
            "model": "large",
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text or said(at)}],
        },
        "response": {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]},
        "metadata": {"conversation": f"c{at}", "user": f"u{at}"},
        "feedback": [],
    }
    return line | changes


def correction(value: Any) -> list[Json]:
    return [{"kind": "correction", "name": "label", "value": value}]


def write_log(path: Path, lines: Iterable[Json | str]) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    return path


def settings_for(path: Path, **changes: Any) -> Settings:
    return Settings.model_validate(
        {"sources": [{"path": str(path), "format": "openai_pairs"}], "split": {"test": 0.3}} | changes
    )


def read_log(path: Path, **changes: Any) -> tuple[list[Exchange], list[Json]]:
    """The exchanges of a log after the first pass, and the rows that it left out."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        with LocalRuntime(1) as runtime, Rejections(out / "rejections.parquet") as rejected:
            logged = read_logs(settings_for(path, **changes), {}, b"", Work(out, runtime, rejected))
        kept = [text for at in logged.blocks for text in read_spool(out, "read", at)["exchange"].to_pylist()]
        return [Exchange.from_json(json.loads(text)) for text in kept], rejections_of(out)


def rows_of(out: Path) -> dict[str, list[Example]]:
    return {
        "train": read_examples(out, "train"),
        "validation": read_examples(out, "validation"),
        "test": read_sealed(out),
    }


def rejections_of(out: Path) -> list[Json]:
    rows: list[Json] = pq.read_table(out / "rejections.parquet").to_pylist()
    return rows


def contents(path: Path) -> bytes:
    """All that a reader of the file could see, and its raw bytes."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        return raw + gzip.decompress(raw)
    if path.suffix == ".parquet":
        return raw + "\n".join(str(row) for row in pq.read_table(path).to_pylist()).encode()
    return raw


def place_of(out: Path) -> dict[str, str]:
    """Each row's split by its id."""
    return {row.id: name for name, rows in rows_of(out).items() for row in rows}
