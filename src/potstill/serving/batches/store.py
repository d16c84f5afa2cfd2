"""Files and batches on the disk: rows in SQLite, contents beside it. Every function blocks: call it from a thread.

What belongs to one owner is not there for another: each look-up names the owner, and a wrong one finds nothing.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import orjson

from potstill.records import Json
from potstill.serving.errors import RequestRefused

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL,
    bytes INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created INTEGER NOT NULL, status TEXT NOT NULL,
    caller TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS files_of ON files (owner, created);
CREATE INDEX IF NOT EXISTS batches_of ON batches (owner, created);
CREATE INDEX IF NOT EXISTS batches_at ON batches (status, created);
"""


def new_id(prefix: str) -> str:
    return f"{prefix}{uuid4().hex}"


class Store:
    """The folder of one server (shared by its workers)."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies in it is not redacted
        self.folder = folder
        self._lock = threading.Lock()
        self._db = sqlite3.connect(folder / "batches.sqlite", timeout=10, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        with self._changing():
            self._db.executescript(_TABLES)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock, self._db:
            yield

    def path(self, file_id: str) -> Path:
        """Where the content of a file lies; only ever called with an id of our own making."""
        return self.folder / f"{file_id}.jsonl"

    # files

    def add_file(self, owner: str, body: Json, content: Path, most_files: int, most_bytes: int) -> None:
        """Take over the finished file `content` under the id in `body`; raises RequestRefused 413 when full."""
        with self._changing():
            count, held = self._db.execute(
                "SELECT count(*), coalesce(sum(bytes), 0) FROM files WHERE owner = ?", (owner,)
            ).fetchone()
            if count >= most_files or held + body["bytes"] > most_bytes:
                message = f"{count} files of {held:,} bytes are kept already; delete some (DELETE /v1/files/ID)"
                raise RequestRefused(413, message, code="storage_full")
            os.replace(content, self.path(body["id"]))
            self._insert_file(owner, body)

    def _insert_file(self, owner: str, body: Json) -> None:
        row = (body["id"], owner, body["created_at"], body["expires_at"], body["bytes"], orjson.dumps(body))
        self._db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", row)

    def file(self, owner: str, file_id: str) -> Json:
        """Raises RequestRefused 404."""
        return self._one("files", owner, file_id)

    def _one(self, table: str, owner: str, identity: str) -> Json:
        with self._lock:
            row = self._db.execute(f"SELECT body FROM {table} WHERE id = ? AND owner = ?", (identity, owner)).fetchone()
        if row is None:
            raise RequestRefused(
                404, f"no such {'file' if table == 'files' else 'batch'}: {identity[:100]!r}", code="not_found"
            )
        found: Json = orjson.loads(row[0])
        return found

    def listed(self, table: str, owner: str, after: str | None, limit: int, oldest_first: bool) -> list[Json]:
        """A page of files or batches behind the one called `after`; one more than `limit` where there are more."""
        order, sign = ("ASC", ">") if oldest_first else ("DESC", "<")
        where, values = "owner = ?", [owner]
        if after is not None:
            where += f" AND rowid {sign} (SELECT rowid FROM {table} WHERE id = ? AND owner = ?)"
            values += [after, owner]
        query = f"SELECT body FROM {table} WHERE {where} ORDER BY rowid {order} LIMIT ?"
        with self._lock:
            rows = self._db.execute(query, (*values, limit + 1)).fetchall()
        return [orjson.loads(row[0]) for row in rows]

    def delete_file(self, owner: str, file_id: str) -> None:
        """Raises RequestRefused 404, or 409 while a batch reads it."""
        self.file(owner, file_id)
        with self._changing():
            for (body,) in self._db.execute(
                f"SELECT body FROM batches WHERE owner = ? AND status IN {UNFINISHED}", (owner,)
            ):
                if orjson.loads(body)["input_file_id"] == file_id:
                    raise RequestRefused(409, f"{file_id} is read by a batch that is not finished", code="in_use")
            self._db.execute("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner))
        self.path(file_id).unlink(missing_ok=True)

    def delete_expired(self) -> int:
        """Delete the files whose time is over; returns how many."""
        with self._changing():
            rows = self._db.execute("DELETE FROM files WHERE expires < ? RETURNING id", (int(time.time()),)).fetchall()
        for (file_id,) in rows:
            self.path(file_id).unlink(missing_ok=True)
        return len(rows)

    # batches

    def add_batch(self, owner: str, body: Json, caller: Json) -> None:
        with self._changing():
            row = (body["id"], owner, body["created_at"], body["status"], orjson.dumps(caller), orjson.dumps(body))
            self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", row)

    def batch(self, owner: str, batch_id: str) -> Json:
        """Raises RequestRefused 404."""
        return self._one("batches", owner, batch_id)

    def cancel(self, owner: str, batch_id: str) -> Json:
        """Ask for its end; raises RequestRefused 404, or 409 for a batch that has ended."""
        body = self.batch(owner, batch_id)
        with self._changing():
            changed = self._db.execute(
                "UPDATE batches SET status = 'cancelling' WHERE id = ? AND status IN ('validating', 'in_progress')",
                (batch_id,),
            ).rowcount
            if not changed and body["status"] != "cancelling":
                raise RequestRefused(409, f"{batch_id} is {body['status']} already", code="batch_ended")
            body |= {"status": "cancelling", "cancelling_at": body["cancelling_at"] or int(time.time())}
            self._db.execute("UPDATE batches SET body = ? WHERE id = ?", (orjson.dumps(body), batch_id))
        return body

    def next_batch(self) -> tuple[str, Json, Json] | None:
        """Owner, caller and body of the oldest batch that is not finished."""
        with self._lock:
            row = self._db.execute(
                f"SELECT owner, caller, body FROM batches WHERE status IN {UNFINISHED} ORDER BY rowid LIMIT 1"
            ).fetchone()
        return None if row is None else (row[0], orjson.loads(row[1]), orjson.loads(row[2]))

    def save(self, body: Json, owner: str = "", files: tuple[Json, ...] = ()) -> bool:
        """Write a batch down, with files that are finished with it; False where it was cancelled in between."""
        with self._changing():
            going = body["status"] in ("validating", "in_progress")
            changed = self._db.execute(
                "UPDATE batches SET status = ?, body = ? WHERE id = ?" + " AND status != 'cancelling'" * going,
                (body["status"], orjson.dumps(body), body["id"]),
            ).rowcount
            for each in files:
                self._insert_file(owner, each)
            return bool(changed)
