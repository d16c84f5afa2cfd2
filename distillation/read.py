"""Traffic in: exchanges out of log files, and the damaged lines with their place and reason."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import DamagedInput, DamagedLine, RecipeError
from potstill.manifest import Input, sha256_file
from potstill.records import Exchange, Feedback

MAX_LINE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line that cannot be used; `damaged` is false for feedback whose exchange is in no source."""

    source: str
    line: int
    reason: str
    text: str
    damaged: bool = True


def files_of(patterns: Sequence[str]) -> list[str]:
    """The files that paths, globs or fsspec addresses stand for, sorted; raises RecipeError for one without files."""
    import fsspec

    found: list[str] = []
    for pattern in patterns:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        matches = sorted(filesystem.glob(path)) if any(c in path for c in "*?[") else [path]
        matches = [each for each in matches if filesystem.isfile(each)]
        if not matches:
            raise RecipeError([f"distill.sources: {pattern}: no such file; give a log file, a glob or an address"])
        found += [filesystem.unstrip_protocol(each) if "://" in pattern else each for each in matches]
    return found


def source_inputs(patterns: Sequence[str]) -> list[Input]:
    """Each source file (and its feedback files) with the digest of its bytes."""
    import fsspec

    inputs = []
    for file in files_of(patterns):
        for each in [file, *_feedback_files([file])]:
            if "://" in each:
                filesystem, path = fsspec.core.url_to_fs(each)
                inputs.append(Input("traffic", each, str(filesystem.checksum(path))))
            else:
                inputs.append(Input("traffic", each, sha256_file(Path(each))))
    return list(dict.fromkeys(inputs))


def read_exchanges(patterns: Sequence[str]) -> Iterator[Exchange | Damaged]:
    """Every line of every source, as an exchange or as damaged; feedback that came later is joined to its answer.

    A server writes `exchanges-*.jsonl` and beside it `feedback-*.jsonl` with `{"id", "feedback"}` lines; only for
    such files is the feedback read, and it may have come in any order.
    """
    files = files_of(patterns)
    later: dict[str, list[Feedback]] = {}
    places: dict[str, Damaged] = {}
    for file in _feedback_files(files):
        for number, line in _lines(file):
            if not line.strip():
                continue
            try:
                data = _json(line)
                later.setdefault(data["id"], []).append(Feedback.from_json(data["feedback"]))
                said = line.decode("utf-8", "replace")
                places[data["id"]] = Damaged(file, number, "feedback: its exchange is in no source", said, False)
            except (DamagedLine, KeyError, TypeError) as fault:
                yield Damaged(file, number, f"feedback line: {fault}", line.decode("utf-8", "replace"))
    for file in files:
        for number, line in _lines(file):
            if not line.strip():
                continue
            try:
                exchange = Exchange.from_json(_json(line))
                places.pop(exchange.id, None)
                yield _with_feedback(exchange, later)
            except DamagedLine as fault:
                yield Damaged(file, number, str(fault), line.decode("utf-8", "replace"))
    yield from places.values()


def _feedback_files(files: Sequence[str]) -> list[str]:
    folders = {Path(file).parent for file in files if Path(file).name.startswith("exchanges-")}
    return sorted(str(path) for folder in folders for path in folder.glob("feedback-*.jsonl*"))


def _with_feedback(exchange: Exchange, later: Mapping[str, list[Feedback]]) -> Exchange:
    if exchange.id not in later:
        return exchange
    data = exchange.to_json()
    data["feedback"] += [each.to_json() for each in later[exchange.id]]
    return Exchange.from_json(data)


def _json(line: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as fault:
        raise DamagedLine(f"not JSON: {fault}") from fault


def _lines(file: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file, gzip or not (told by its first bytes, not its name)."""
    import fsspec

    with fsspec.open(file, "rb") as raw:
        start = raw.read(2)
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if start == b"\x1f\x8b" else raw
        number = 0
        try:
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                yield number, line
        except (EOFError, OSError, zlib.error) as fault:
            raise DamagedInput(
                f"{file}: the compressed stream breaks off after line {number} ({fault}); restore the file"
            ) from fault
