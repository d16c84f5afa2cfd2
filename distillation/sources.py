"""Traffic in: the files that sources name, as blocks of records, a line of JSON each; one block after the other.

A source is a file, a glob or any fsspec address; plain, gzip or zstd (told by its first bytes); JSON lines, one JSON
array, one pretty-printed document, or Parquet; or an MLflow experiment. Whatever it was, a block holds JSON lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from potstill.captured_files import instead_of, is_lines, parquet_of
from potstill.errors import RecipeError
from potstill.feedback_join import EXCHANGES
from potstill.feedback_join import FEEDBACK as LATER
from potstill.manifest import Input, sha256_file
from potstill.progress import say
from potstill.recipe import PathText, Section

from .chunks import TRACES, line_chunks
from .connectors import FORMATS, connector, detect
from .connectors.base import Connector
from .lookup import Companions, build_lookup

DETECT_RECORDS = 20
BLOCKS_A_FILE = 1_000_000
FEEDBACK = "feedback"  # the companion that our own server writes beside every captured file, whatever its format


class Source(Section):
    """One log. `auto` looks at the first records; `beside` names companion files (see docs/traffic.md)."""

    path: PathText
    format: str = "auto"
    beside: dict[str, PathText] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Block:
    """Records of one file: JSON lines (blank ones too), the first of them numbered `first`."""

    source: int
    file: str
    format: str
    first: int
    lines: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Log:
    """One file of a source with the connector that reads it."""

    source: int
    file: str
    connector: Connector


def check_sources(sources: Sequence[Source]) -> None:
    """Raise RecipeError for an unknown format or companion, every fault at once."""
    faults = []
    for at, each in enumerate(sources):
        if each.format == "auto":
            continue
        if each.format not in FORMATS:
            faults.append(f"distill.sources.{at}.format: found {each.format!r}, expected auto or {', '.join(FORMATS)}")
            continue
        faults += _companion_faults(at, each, connector(each.format))
    if faults:
        raise RecipeError(faults)


def _companion_faults(at: int, source: Source, known: Connector) -> list[str]:
    expected = ", ".join(known.companions) or "none"
    return [
        f"distill.sources.{at}.beside.{name}: {known.name} has no such companion; it has: {expected}"
        for name in sorted(source.beside.keys() - known.companions.keys())
    ] + [
        f"distill.sources.{at}.beside.{name}: missing; {known.name} cannot be read without it"
        for name in known.required
        if name not in source.beside
    ]


def files_of(path: str) -> list[str]:
    """The files that a path, glob or fsspec address stands for, sorted; raises RecipeError when there is none.

    Where it names captured files of lines, their Parquet files are meant too: lines become Parquet while one looks.
    """
    import fsspec

    if path.startswith(TRACES):
        return [path]
    filesystem, inner = fsspec.core.url_to_fs(path)
    matches = sorted(filesystem.glob(inner)) if any(c in inner for c in "*?[") else [inner]
    if is_lines(inner):
        rotated = parquet_of(inner)
        matches += filesystem.glob(rotated) if any(c in inner for c in "*?[") else [rotated]
    matches = instead_of(sorted({each for each in matches if filesystem.isfile(each)}))
    if not matches:
        raise RecipeError([f"distill.sources: {path}: no such file; give a log file, a glob or an address"])
    return [filesystem.unstrip_protocol(each) if "://" in path else each for each in matches]


def feedback_files(file: str) -> list[str]:
    """What our server wrote beside a captured `exchanges-*` file: its feedback, which may come in any order."""
    path = Path(file)
    captured = path.name.startswith(EXCHANGES.partition("*")[0])
    return sorted(map(str, path.parent.glob(f"{LATER}*"))) if captured else []


def source_inputs(sources: Sequence[Source]) -> list[Input]:
    """Each file of each source, companions too, with the digest of its bytes."""
    inputs = []
    for source in sources:
        files = files_of(source.path)
        files += [each for file in files for each in feedback_files(file)]
        files += [each for path in source.beside.values() for each in files_of(path)]
        inputs += [Input("traffic", each, _digest(each)) for each in files]
    return list(dict.fromkeys(inputs))


def _digest(file: str) -> str:
    if file.startswith(TRACES):
        from potstill.tracking_traces import traces_digest

        return traces_digest(file)
    if "://" not in file:
        return sha256_file(Path(file))
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(file)
    return str(filesystem.checksum(path))


def open_logs(sources: Sequence[Source], scratch: Path) -> tuple[list[Log], Companions]:
    """Every file with its connector, formats detected and said; companion files indexed in `scratch`."""
    logs: list[Log] = []
    companions: Companions = {}
    for at, source in enumerate(sources):
        beside = {name: files_of(path) for name, path in source.beside.items()}
        files = files_of(source.path)
        feedback = sorted({each for file in files for each in feedback_files(file)})
        for file in files:
            if source.format == "auto":
                found = detect(_first_records(file), file)
                say(f"{file}: read as {found.name} ({found.what})")
                if faults := _companion_faults(at, source, found):
                    raise RecipeError(faults)
            else:
                found = connector(source.format)
            logs.append(Log(at, file, found))
            wanted = {name: (beside[name], key) for name, key in found.companions.items() if name in beside}
            if feedback:
                wanted[FEEDBACK] = (feedback, "id")
            if wanted and at not in companions:
                companions[at] = build_lookup(scratch / f"companions-{at}.sqlite", wanted)
    return logs, companions


def blocks(logs: Sequence[Log]) -> Iterator[tuple[int, Block]]:
    """All records of all files in order, each block with its number."""
    for at, log in enumerate(logs):
        yield from blocks_of(at, log)


def blocks_of(at: int, log: Log) -> Iterator[tuple[int, Block]]:
    """The blocks of one file, which stands at this place among the files: numbers are the same wherever it is read.

    Raises DamagedInput where a compressed stream breaks off.
    """
    number, first = at * BLOCKS_A_FILE, 1
    for lines in line_chunks(log.file):
        yield number, Block(log.source, log.file, log.connector.name, first, lines)
        number, first = number + 1, first + lines.count(b"\n")


def _first_records(file: str) -> list[Any]:
    import orjson

    records: list[Any] = []
    for lines in line_chunks(file):
        for line in lines.split(b"\n"):
            if line.strip():
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(record, dict):
                    records.append(record)
            if len(records) == DETECT_RECORDS:
                return records
        if records:
            break
    return records
