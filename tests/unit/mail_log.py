"""A made-up log of a bank's mail, and the rows of the dataset that it was distilled to."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from distillation.run import Settings
from potstill.dataset import read_examples, read_sealed
from potstill.records import Example, Json

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
    return Settings.model_validate({"sources": [{"path": str(path)}], "split": {"test": 0.3}} | changes)


def rows_of(out: Path) -> dict[str, list[Example]]:
    return {
        "train": read_examples(out, "train"),
        "validation": read_examples(out, "validation"),
        "test": read_sealed(out),
    }


def rejections_of(out: Path) -> list[Json]:
    rows: list[Json] = pq.read_table(out / "rejections.parquet").to_pylist()
    return rows


def place_of(out: Path) -> dict[str, str]:
    """Each row's split by its id."""
    return {row.id: name for name, rows in rows_of(out).items() for row in rows}
