"""Traffic in: the files that sources name, as blocks of records, a line of JSON each; one block after the other.

A source is a file, a glob or any fsspec address; plain, gzip or zstd (told by its first bytes); JSON lines, one JSON
array, one pretty-printed document, or Parquet; or an MLflow experiment. Whatever it was, a block holds JSON lines.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from potstill.errors import DamagedInput, RecipeError
from potstill.manifest import Input, sha256_file
from potstill.progress import say
from potstill.recipe import PathText, Section

from .connectors import FORMATS, connector, detect
from .connectors.base import Connector
from .lookup import Companions, build_lookup

BLOCK_BYTES = 4 * 2**20  # some four thousand rows of 1 KB: small against memory, large against what a block costs
MAX_LINE_BYTES = 64 * 2**20
MAX_DOCUMENT_BYTES = 2**30
DETECT_RECORDS = 20
_ARROW_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}


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
        known = connector(each.format)
        for name in each.beside.keys() - known.companions.keys():
            expected = ", ".join(known.companions) or "none"
            faults.append(
                f"distill.sources.{at}.beside.{name}: {each.format} has no such companion; it has: {expected}"
            )
        for name in known.required:
            if name not in each.beside:
                faults.append(f"distill.sources.{at}.beside.{name}: missing; {each.format} cannot be read without it")
    if faults:
        raise RecipeError(faults)


def is_trace_address(path: str) -> bool:
    return path.startswith("mlflow+")


def files_of(path: str) -> list[str]:
    """The files that a path, glob or fsspec address stands for, sorted; raises RecipeError when there is none."""
    import fsspec

    if is_trace_address(path):
        return [path]
    filesystem, inner = fsspec.core.url_to_fs(path)
    matches = sorted(filesystem.glob(inner)) if any(c in inner for c in "*?[") else [inner]
    matches = [each for each in matches if filesystem.isfile(each)]
    if not matches:
        raise RecipeError([f"distill.sources: {path}: no such file; give a log file, a glob or an address"])
    return [filesystem.unstrip_protocol(each) if "://" in path else each for each in matches]


def feedback_files(file: str) -> list[str]:
    """What our server wrote beside a captured `exchanges-*` file: its feedback, which may come in any order."""
    path = Path(file)
    return sorted(map(str, path.parent.glob("feedback-*.jsonl*"))) if path.name.startswith("exchanges-") else []


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
    if is_trace_address(file):
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
        for file in files_of(source.path):
            if source.format == "auto":
                found = detect(_first_records(file), file)
                say(f"{file}: read as {found.name} ({found.what})")
            else:
                found = connector(source.format)
            logs.append(Log(at, file, found))
            given = beside | ({"feedback": feedback_files(file)} if feedback_files(file) else {})
            wanted = {name: (given[name], key) for name, key in found.companions.items() if name in given}
            if wanted and at not in companions:
                companions[at] = build_lookup(scratch / f"companions-{at}.sqlite", wanted)
    return logs, companions


def blocks(logs: Sequence[Log]) -> Iterator[Block]:
    """All records of all files in order; raises DamagedInput where a compressed stream breaks off."""
    for log in logs:
        number = 1
        for lines in line_chunks(log.file):
            yield Block(log.source, log.file, log.connector.name, number, lines)
            number += lines.count(b"\n")


def line_chunks(file: str) -> Iterator[bytes]:
    """The records of a file as JSON lines, in pieces of about BLOCK_BYTES that end where a line ends."""
    import fsspec

    if is_trace_address(file):
        from potstill.tracking_traces import trace_records

        yield from _packed(trace_records(file))
        return
    with fsspec.open(file, "rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        if start == b"PAR1":
            yield from _packed(_parquet_rows(raw))
            return
        stream, head = _decompressed(raw, start, file)
        first = head.lstrip()[:1]
        if first == b"[":
            import ijson

            yield from _packed(ijson.items(_Rejoined(head, stream, file), "item", use_float=True))
        elif first == b"{" and (whole := _document(head, stream, file)) is not None:
            yield from _packed(whole)
        else:
            yield from _lines(head, stream, file)


def _decompressed(raw: Any, start: bytes, file: str) -> tuple[Any, bytes]:
    """The stream behind gzip or zstd and its first bytes."""
    import pyarrow as pa

    codec = _ARROW_CODECS.get(start[:2]) if start[:2] != b"\x28\xb5" or start == b"\x28\xb5\x2f\xfd" else None
    stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec) if codec else raw
    return stream, _read(stream, file, 0)


def _read(stream: Any, file: str, lines: int) -> bytes:
    try:
        return bytes(stream.read(BLOCK_BYTES))
    except (OSError, EOFError) as fault:
        raise DamagedInput(
            f"{file}: the compressed stream breaks off after line {lines} ({fault}); restore the file"
        ) from fault


def _lines(head: bytes, stream: Any, file: str) -> Iterator[bytes]:
    number, rest, chunk = 0, b"", head
    while chunk:
        cut = chunk.rfind(b"\n") + 1
        if cut:
            lines = rest + chunk[:cut]
            number += lines.count(b"\n")
            yield lines
            rest = chunk[cut:]
        else:
            rest += chunk
        if len(rest) > MAX_LINE_BYTES:
            raise DamagedInput(
                f"{file}: line {number + 1} is longer than {MAX_LINE_BYTES // 2**20} MiB; is this a log of JSON lines?"
            )
        chunk = _read(stream, file, number)
    if rest:
        yield rest + b"\n"


def _is_json(line: bytes) -> bool:
    import orjson

    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _document(head: bytes, stream: Any, file: str) -> list[Any] | None:
    """The records of a file that is one JSON document (a page of an API, say); None when it is none."""
    import orjson

    if _is_json(head.lstrip().partition(b"\n")[0]) or (b"\n" not in head.strip() and len(head) >= BLOCK_BYTES):
        return None
    second = head.lstrip().split(b"\n", 2)[1:2]
    if second and _is_json(second[0]) and second[0].lstrip()[:1] == b"{":
        return None  # JSON lines with a damaged first one
    whole = io.BytesIO(head)
    whole.seek(0, io.SEEK_END)
    while chunk := _read(stream, file, 0):
        whole.write(chunk)
        if whole.tell() > MAX_DOCUMENT_BYTES:
            raise DamagedInput(f"{file}: one JSON document of more than 1 GiB; write it as JSON lines")
    try:
        document = orjson.loads(whole.getvalue())
    except orjson.JSONDecodeError:
        return [*whole.getvalue().split(b"\n")]
    inner = next((document[key] for key in ("data", "traces") if isinstance(document.get(key), list)), None)
    return inner if inner is not None and "resourceSpans" not in document else [document]


class _Rejoined(io.RawIOBase):
    """A stream with the bytes that were read of it put back in front."""

    def __init__(self, head: bytes, stream: Any, file: str) -> None:
        self._head, self._stream, self._file = head, stream, file

    def read(self, size: int = -1) -> bytes:
        if self._head:
            size = len(self._head) if size < 0 else size
            out, self._head = self._head[:size], self._head[size:]
            return out
        return _read(self._stream, self._file, 0)


def _packed(records: Any) -> Iterator[bytes]:
    """Records (parsed, or lines of bytes) as chunks of JSON lines."""
    import orjson

    lines: list[bytes] = []
    size = 0
    for record in records:
        line = record if isinstance(record, bytes) else orjson.dumps(record, default=str)
        lines.append(line)
        size += len(line) + 1
        if size >= BLOCK_BYTES:
            yield b"\n".join(lines) + b"\n"
            lines, size = [], 0
    if lines:
        yield b"\n".join(lines) + b"\n"


def _parquet_rows(raw: Any) -> Iterator[Any]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(raw).iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            yield {name: _unpacked(value) for name, value in row.items() if value is not None}


def _unpacked(value: Any) -> Any:
    """A cell that holds JSON as text (tables have no nested free form) as what it says."""
    import orjson

    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


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
