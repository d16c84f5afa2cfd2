"""Any file as JSON lines: decompressed, unpacked, in pieces that end where a line ends, memory flat."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from potstill.errors import DamagedInput

BLOCK_BYTES = 4 * 2**20  # some four thousand rows of 1 KB: small against memory, large against what a block costs
MAX_LINE_BYTES = 64 * 2**20
MAX_DOCUMENT_BYTES = 2**30


TRACES = "mlflow+"  # how the address of an MLflow experiment begins (potstill.tracking_traces reads it)


def line_chunks(file: str) -> Iterator[bytes]:
    """The records of a file as JSON lines, in pieces of about BLOCK_BYTES that end where a line ends."""
    import fsspec

    if file.startswith(TRACES):
        from potstill.tracking_traces import trace_records

        yield from _packed(trace_records(file))
        return
    with fsspec.open(file, "rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        if start == b"PAR1":
            yield from _packed(_parquet_rows(raw, file))
            return
        chunks = _counted(_decompressed(raw, start), file)
        head = next(chunks, b"")
        chunks = chain([head], chunks)
        first = head.lstrip()[:1]
        if first == b"[":
            yield from _packed(_items(chunks, file))
        elif first == b"{" and _is_one_document(head):
            yield from _packed(_document(chunks, file))
        else:
            yield from _lines(chunks, file)


def _decompressed(raw: Any, start: bytes) -> Iterator[bytes]:
    """The bytes behind gzip, zstd or nothing, in pieces of about BLOCK_BYTES."""
    if start[:2] == b"\x1f\x8b":
        yield from _gunzipped(raw)
        return
    if start == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        raw = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    while piece := raw.read(BLOCK_BYTES):
        yield bytes(piece)


def _gunzipped(raw: Any) -> Iterator[bytes]:
    """All members of a gzip stream. What was read before a stream breaks off is given first: it can be counted."""
    import zlib

    inflate, begun = zlib.decompressobj(wbits=31), False
    waiting = b""
    while piece := waiting or raw.read(BLOCK_BYTES // 4):
        out, begun = inflate.decompress(piece, BLOCK_BYTES), True
        waiting = inflate.unconsumed_tail
        if out:
            yield out
        if inflate.eof:
            waiting, begun = inflate.unused_data.lstrip(b"\0"), False
            inflate = zlib.decompressobj(wbits=31)
    if begun:
        raise EOFError("it ends before its end-of-stream mark")


def _counted(chunks: Iterator[bytes], file: str) -> Iterator[bytes]:
    """The chunks; a fault of the stream becomes DamagedInput that names the last whole line."""
    import zlib

    lines = 0
    try:
        for chunk in chunks:
            lines += chunk.count(b"\n")
            yield chunk
    except (OSError, EOFError, zlib.error) as fault:
        raise DamagedInput(
            f"{file}: the compressed stream breaks off after line {lines} ({fault}); restore the file"
        ) from fault


def _lines(chunks: Iterable[bytes], file: str) -> Iterator[bytes]:
    number, rest = 0, b""
    for chunk in chunks:
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
    if rest:
        yield rest + b"\n"


def _is_json(line: bytes) -> bool:
    import orjson

    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _is_one_document(head: bytes) -> bool:
    """Whether a file that begins with `{` is one document, not JSON lines (some perhaps damaged).

    It is when it goes over several lines, or when its only line is a page of an API (`{"data": [...]}`).
    """
    lines = head.lstrip().split(b"\n", 2)
    if len(lines) > 1 and lines[1].strip():
        return not any(_is_json(line) and line.lstrip()[:1] == b"{" for line in lines[:2])
    return len(head) < BLOCK_BYTES and (not _is_json(lines[0]) or _page(lines[0]) is not None)


def _page(text: bytes) -> list[Any] | None:
    """The records of a page of an API."""
    import orjson

    document = orjson.loads(text)
    if not isinstance(document, dict):
        return None
    return next((document[key] for key in ("data", "traces") if isinstance(document.get(key), list)), None)


def _document(chunks: Iterable[bytes], file: str) -> list[Any]:
    """The records of a file that is one JSON document (a page of an API, say); its lines when it is none after all."""
    import orjson

    whole = io.BytesIO()
    for chunk in chunks:
        whole.write(chunk)
        if whole.tell() > MAX_DOCUMENT_BYTES:
            raise DamagedInput(f"{file}: one JSON document of more than 1 GiB; write it as JSON lines")
    try:
        page = _page(whole.getvalue())
    except orjson.JSONDecodeError:
        return whole.getvalue().rstrip(b"\n").split(b"\n")
    return page if page is not None else [orjson.loads(whole.getvalue())]


def _items(chunks: Iterator[bytes], file: str) -> Iterator[Any]:
    """The items of one JSON array."""
    import ijson

    try:
        yield from ijson.items(_Readable(chunks), "item", use_float=True)
    except ijson.JSONError as fault:
        said = " ".join(str(fault).split())
        raise DamagedInput(f"{file}: begins like a JSON array and is none ({said}); restore the file") from fault


class _Readable:
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = next(self._chunks, b"")
        size = len(self._rest) if size < 0 else size
        out, self._rest = self._rest[:size], self._rest[size:]
        return out


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


def _parquet_rows(raw: Any, file: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(raw).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield {name: _unpacked(value) for name, value in row.items() if value is not None}
    except (pa.ArrowInvalid, OSError) as fault:
        raise DamagedInput(f"{file}: not Parquet to its end ({fault}); restore the file") from fault


def _unpacked(value: Any) -> Any:
    """A cell that holds JSON as text (tables have no nested free form) as what it says."""
    import orjson

    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value
