"""Which answers were captured in a folder, by whomever: exact, shared by its servers, memory flat however many.

A SQLite file in the folder holds a 64-bit hash an id and how far each file was read; it is made of the files alone, so
that whoever doubts it may delete it. The newest ids of this process are in memory: feedback mostly comes soon.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path

import orjson

from potstill.captured_files import INDEX, exchange_files, ids_of

RECENT = 50_000
_BEGIN = b'{"id":"'  # how our own lines begin; cheaper to cut than to parse


class KnownIds:
    """`note` what this process captures; `knows` asks for any id."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / INDEX
        self._recent: dict[str, None] = {}
        self._looking = threading.Lock()

    def note(self, identity: str) -> None:
        recent = self._recent
        recent[identity] = None
        if len(recent) > RECENT:
            del recent[next(iter(recent))]

    def forget(self, identity: str) -> None:
        """It could not be written after all."""
        self._recent.pop(identity, None)

    def knows(self, identity: str) -> bool:
        """Whether an exchange of this id was captured, here or by another server, now or before. Reads files."""
        if identity in self._recent:
            return True
        with self._looking:
            try:
                return self._look(identity)
            except sqlite3.DatabaseError:  # a power cut spoiled it
                self._path.unlink(missing_ok=True)
                return self._look(identity)

    def _look(self, identity: str) -> bool:
        with closing(sqlite3.connect(self._path, timeout=10, isolation_level=None)) as base:
            base.execute("PRAGMA synchronous = OFF")
            base.execute("CREATE TABLE IF NOT EXISTS ids (hash INTEGER PRIMARY KEY)")
            base.execute("CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, read_to INTEGER)")
            if self._is_in(base, identity):
                return True
            base.execute("BEGIN IMMEDIATE")
            for path in exchange_files(self._folder):
                with suppress(FileNotFoundError):  # moved on since; what it became is read at the next look
                    _take(base, path)
            base.execute("COMMIT")
            return self._is_in(base, identity)

    @staticmethod
    def _is_in(base: sqlite3.Connection, identity: str) -> bool:
        return base.execute("SELECT 1 FROM ids WHERE hash = ?", (hash_of(identity),)).fetchone() is not None


def hash_of(identity: str) -> int:
    """64 bits of BLAKE2b, as SQLite has its integers: ten million ids meet by chance once in 370,000 folders."""
    return int.from_bytes(
        blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
    )


def _take(base: sqlite3.Connection, path: Path) -> None:
    """Add the ids that a file has beyond where it was read to."""
    found = base.execute("SELECT read_to FROM files WHERE name = ?", (path.name,)).fetchone()
    if path.suffix == ".parquet":
        if found is not None:
            return
        ids, read_to = ids_of(path), path.stat().st_size
        base.executemany("INSERT OR IGNORE INTO ids VALUES (?)", ((hash_of(each),) for each in ids))
    else:
        read_to = found[0] if found else 0
        with path.open("rb") as stream:
            stream.seek(read_to)
            for ids_here, end in _pieces(iter(partial(stream.read, 1 << 20), b"")):
                base.executemany("INSERT OR IGNORE INTO ids VALUES (?)", ((hash_of(each),) for each in ids_here))
                read_to += end
    base.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (path.name, read_to))


def _pieces(blocks: Iterator[bytes]) -> Iterator[tuple[list[str], int]]:
    """The ids of the whole lines of each block, with the bytes that these lines take.

    What is left at the end is being written, or was left so by a kill.
    """
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield [each for line in lines if (each := _id_of(line)) is not None], sum(len(line) + 1 for line in lines)


def _id_of(line: bytes) -> str | None:
    """The id of a line; None for one that is damaged (the reader of the traffic reports it) or was forgotten."""
    if line.startswith(_BEGIN):
        end = line.find(b'"', len(_BEGIN))
        if end > 0 and b"\\" not in line[:end]:
            return line[len(_BEGIN) : end].decode("utf-8", "replace")
    try:
        found = orjson.loads(line)["id"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
