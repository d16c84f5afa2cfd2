"""The parts of a multipart/form-data body (RFC 7578) that lies in a file: small fields, and one file copied out."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

from potstill.serving.errors import RequestRefused

_BOUNDARY = re.compile(r'multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="([^"\r\n]{0,200})"', re.IGNORECASE)
_FILE = re.compile(rb'[;\s]filename="([^"\r\n]{0,400})"', re.IGNORECASE)
_MOST_PARTS = 16
_MOST_HEAD = 4096
_MOST_FIELD = 4096
_PIECE = 1 << 20


def boundary_of(content_type: str) -> bytes:
    """The line between parts; raises RequestRefused 400 for another content type."""
    found = _BOUNDARY.match(content_type.strip())
    if found is None:
        raise RequestRefused(400, "content-type: expected multipart/form-data with a boundary")
    return (found[1] or found[2]).encode("latin-1")


def read_form(body: Path, boundary: bytes, file_to: Path) -> tuple[dict[str, str], str | None]:
    """The fields by name, and the name of the part `file`, whose content is written to `file_to` (None: no such part).

    Raises RequestRefused 400 for a body that is no form.
    """
    fields: dict[str, str] = {}
    filename = None
    if not body.stat().st_size:
        raise RequestRefused(400, "the body is empty, expected a form")
    with body.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for head, begin, end in _parts(data, b"--" + boundary):
            name = _NAME.search(head)
            if name is None:
                raise RequestRefused(400, "a part of the form has no name")
            named = _FILE.search(head)
            if name[1] == b"file" and named is not None:
                filename = os.path.basename(named[1].decode(errors="replace")) or "file.jsonl"
                _copy(data, begin, end, file_to)
            elif end - begin > _MOST_FIELD:
                raise RequestRefused(400, f"a field of the form is longer than {_MOST_FIELD:,} bytes")
            else:
                fields[name[1].decode(errors="replace")] = data[begin:end].decode(errors="replace")
    return fields, filename


def _parts(data: mmap.mmap, line: bytes) -> list[tuple[bytes, int, int]]:
    """Headers, begin and end of the content of each part."""
    parts: list[tuple[bytes, int, int]] = []
    at = data.find(line, 0, len(line) + _MOST_HEAD)
    while at >= 0 and data[at + len(line) : at + len(line) + 2] != b"--":
        begin = data.find(b"\r\n\r\n", at, at + len(line) + _MOST_HEAD)
        following = data.find(b"\r\n" + line, max(begin, at))
        if begin < 0 or following < 0 or len(parts) >= _MOST_PARTS:
            raise RequestRefused(400, "the body is no whole form: a part has no end, or there are too many")
        head = data[at + len(line) : begin]
        # an empty part: the blank line and the line before the next boundary are the same
        parts.append((head, min(begin + 4, following + 2), max(following, min(begin + 4, following + 2))))
        at = following + 2
    if not parts:
        raise RequestRefused(400, "the body holds no part of a form")
    return parts


def _copy(data: mmap.mmap, begin: int, end: int, to: Path) -> None:
    with to.open("wb") as stream:
        for at in range(begin, end, _PIECE):
            stream.write(data[at : min(at + _PIECE, end)])
        stream.flush()
        os.fsync(stream.fileno())
