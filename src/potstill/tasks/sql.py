"""SQL that is judged by what it returns: run read-only on an SQLite file, compared as multisets of rows.

Answers are written by a model, so nothing of them is trusted: the file is opened read-only, an authorizer lets reading
pass and nothing else (no write, ATTACH, PRAGMA, extension), time, rows and the size of values are bounded.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from potstill.errors import RecipeError
from potstill.records import Json

LARGEST_VALUE_BYTES = 10_000_000  # randomblob(1e9) and its kin
MOST_CHARACTERS = 50_000_000  # of all values of a result together
LONGEST_QUERY = 100_000
STEPS_A_CHECK = 10_000  # of SQLite's virtual machine, between two looks at the clock
KEPT = 10_000  # results kept by query, so that every candidate's comparison runs the reference once
_SIGNIFICANT = 9  # digits of a float: sums of the same numbers in another order differ beyond them
_ALLOWED = {
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE,
}  # fmt: skip
_FENCE = re.compile(r"^```[a-zA-Z]*\n(.*?)\n?```$", re.DOTALL)
_SKIPPED = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\] | --[^\n]* | /\*.*?\*/""", re.DOTALL | re.VERBOSE
)

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What a query returned, rows in a form that compares, or why it returned nothing."""

    rows: tuple[Row, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class SqlDatabase:
    """`timeout_s` and `max_rows` bound one query. Results are kept, so the file must not change while it is used."""

    database: str
    timeout_s: float = 5.0
    max_rows: int = 10_000
    _kept: dict[str, Result] = field(init=False, repr=False, compare=False, default_factory=dict)

    def describe(self) -> Json:
        return {"database": self.database, "timeout_s": self.timeout_s, "max_rows": self.max_rows}

    def run(self, query: str) -> Result:
        """The result of one read-only query; raises RecipeError when the database is not there."""
        if query not in self._kept:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[query] = self._fresh(query)
        return self._kept[query]

    def _fresh(self, query: str) -> Result:
        if len(query) > LONGEST_QUERY:
            return Result(error=f"a query of {len(query):,} characters; at most {LONGEST_QUERY:,} are run")
        base = self._opened()
        start = time.monotonic()
        base.set_progress_handler(lambda: int(time.monotonic() - start > self.timeout_s), STEPS_A_CHECK)
        try:
            cursor = base.execute(query)
            if cursor.description is None:
                return Result(error="returns no columns; expected one SELECT")
            rows = _bounded(cursor, self.max_rows)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as fault:
            if time.monotonic() - start > self.timeout_s:
                return Result(error=f"ran longer than {self.timeout_s:g} s")
            return Result(error=f"{type(fault).__name__}: {fault}"[:200])
        finally:
            base.close()
        if rows is None:
            return Result(error=f"more than {self.max_rows:,} rows or {MOST_CHARACTERS:,} characters")
        return Result(tuple(rows))

    def _opened(self) -> sqlite3.Connection:
        if not Path(self.database).is_file():
            raise RecipeError([f"task.sql.database: {self.database} does not exist; give an SQLite file"])
        # nolock would be faster and unsafe beside a writer; mode=ro never makes a file or a journal.
        base = sqlite3.connect(f"file:{quote(self.database)}?mode=ro", uri=True, timeout=1.0)
        base.text_factory = lambda raw: raw.decode("utf-8", "replace")
        base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE_BYTES)
        base.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        base.set_authorizer(_authorised)
        return base


def _bounded(cursor: sqlite3.Cursor, most: int) -> list[Row] | None:
    """All rows, or None when they are too many or too large to keep."""
    rows, size = [], 0
    for row in cursor:
        rows.append(tuple(_comparable(value) for value in row))
        size += sum(len(each) for each in rows[-1])
        if len(rows) > most or size > MOST_CHARACTERS:
            return None
    return rows


def _authorised(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action == sqlite3.SQLITE_FUNCTION and (second or "").casefold() in ("load_extension", "readfile", "writefile"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _comparable(value: Any) -> str:
    """One text for equal values: 1 and 1.0 are, 1 and '1' are not."""
    if isinstance(value, float) and value == round(value) and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, float):
        return f"n{value:.{_SIGNIFICANT}g}"
    if isinstance(value, int):
        return f"n{value}"
    return "null" if value is None else f"b{value.hex()}" if isinstance(value, bytes) else f"t{value}"


def same_result(found: Result, gold: Result, ordered: bool) -> bool:
    """Whether two queries returned the same rows: as often each, and in the same order where `ordered`.

    Columns count by place, not by name. A query that failed returned the same as none.
    """
    if found.error is not None or gold.error is not None:
        return False
    return found.rows == gold.rows if ordered else Counter(found.rows) == Counter(gold.rows)


def is_ordered(query: str) -> bool:
    """Whether the outermost query says ORDER BY (one inside parentheses orders nothing that is seen)."""
    bare, depth, top = _SKIPPED.sub(" ", query), 0, []
    for each in bare:
        depth += (each == "(") - (each == ")")
        top.append(each if depth == 0 else " ")
    return re.search(r"\border\s+by\b", "".join(top), re.IGNORECASE) is not None


def without_fence(text: str) -> str:
    """The query in an answer: what stands in a Markdown fence, without a semicolon at its end."""
    fenced = _FENCE.match(text.strip())
    return (fenced[1] if fenced else text).strip().rstrip(";").strip()
