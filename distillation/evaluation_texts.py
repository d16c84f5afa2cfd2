"""The texts of evaluation files, whatever their form: text lines, JSON lines, CSV, Parquet; compressed or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from potstill.errors import DamagedInput, RecipeError
from potstill.prompt import joined
from potstill.records import Json

USUAL_KEYS = ("messages", "request.messages", "input", "question", "prompt", "text", "query", "instruction")
GOLD_KEYS = {"id", "answer"}  # a gold file of ours: the questions stand in the log, under these ids
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """One text of an evaluation file, or the id of a gold answer; `place` is "file:line", counted from 1."""

    text: str
    place: str
    is_id: bool = False


def evaluation_texts(path: str, keys: Sequence[str] = ()) -> Iterator[EvaluationText]:
    """Every text of a file: the given dotted keys of its records, or the first usual one that a record has.

    Of messages, what the user wrote last. Raises RecipeError for a file that is not there or whose records have no such
    key, DamagedInput for one that cannot be read.
    """
    try:
        if _suffix(path) in (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv"):
            for line, record in _records(path):
                yield from _texts_of(record, keys, f"{path}:{line}")
        else:
            for line, text in enumerate(_lines(path), start=1):
                if text.strip():
                    yield EvaluationText(text, f"{path}:{line}")
    except FileNotFoundError as fault:
        raise RecipeError(
            [f"distill.decontaminate.files: {path}: no such file; give a file of evaluation texts"]
        ) from fault
    except (UnicodeDecodeError, EOFError, OSError) as fault:
        raise DamagedInput(f"{path}: cannot be read ({fault}); restore the evaluation file") from fault


def _suffix(path: str) -> str:
    name = PurePosixPath(path)
    return (PurePosixPath(name.stem) if name.suffix in COMPRESSED else name).suffix.lower()


def _lines(path: str) -> Iterator[str]:
    import fsspec

    with fsspec.open(path, "rt", compression="infer", encoding="utf-8", newline=None) as file:
        yield from (str(line) for line in file)


def _records(path: str) -> Iterator[tuple[int, Any]]:
    """Records with their line (in Parquet and JSON arrays: their number)."""
    suffix = _suffix(path)
    if suffix == ".parquet":
        import fsspec
        import pyarrow as pa
        import pyarrow.parquet as pq

        with fsspec.open(path, "rb") as file:
            try:
                yield from enumerate(pq.read_table(file).to_pylist(), start=1)
            except pa.ArrowInvalid as fault:
                raise DamagedInput(f"{path}: not Parquet ({fault}); restore the evaluation file") from fault
    elif suffix in (".csv", ".tsv"):
        import csv

        reader = csv.DictReader(_lines(path), delimiter="\t" if suffix == ".tsv" else ",")
        for record in reader:
            yield reader.line_num, record
    elif suffix == ".json":
        data = _json("".join(_lines(path)), path, 1)
        yield from enumerate(data if isinstance(data, list) else [data], start=1)
    else:
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                yield number, _json(line, path, number)


def _json(text: str, path: str, line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as fault:
        raise DamagedInput(f"{path}:{line}: not JSON ({fault}); mend the evaluation file") from fault


def _texts_of(record: Any, keys: Sequence[str], place: str) -> Iterator[EvaluationText]:
    if isinstance(record, str) and not keys:
        yield EvaluationText(record, place)
        return
    if not isinstance(record, dict):
        raise RecipeError([f"distill.decontaminate.files: {place}: found {type(record).__name__}, expected an object"])
    if not keys and set(record) >= GOLD_KEYS and not any(_at(record, key) is not None for key in USUAL_KEYS):
        yield EvaluationText(str(record["id"]), place, is_id=True)
        return
    chosen = keys or [key for key in USUAL_KEYS if _at(record, key) is not None][:1]
    found = [text for key in chosen for text in _texts_in(_at(record, key))]
    if not found and not any(_at(record, key) is not None for key in chosen):
        wanted = " or ".join(keys or USUAL_KEYS)
        raise RecipeError(
            [f"distill.decontaminate.files: {place}: found {', '.join(sorted(record))}; expected {wanted}; give `keys`"]
        )
    yield from (EvaluationText(text, place) for text in found)


def _at(record: Json, key: str) -> Any:
    """The value at a dotted key, or under the whole name where a column is called so."""
    if key in record:
        return record[key]
    value: Any = record
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value


def _texts_in(value: Any) -> list[str]:
    """A text as it is, of messages (also as JSON text, as our datasets keep them) the user's newest, of a list each."""
    if isinstance(value, str) and value.startswith("[{"):
        try:
            value = json.loads(value)
        except ValueError:
            return [str(value)]
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return []
    if value and all(isinstance(each, dict) and "role" in each for each in value):
        asked = [joined(each.get("content")) for each in value if each["role"] == "user"]
        return [each for each in asked[-1:] if isinstance(each, str)]
    return [each for each in value if isinstance(each, str)]
