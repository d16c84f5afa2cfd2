"""Closed files of captured lines become Parquet, and the folder stays within its bytes.

Runs as a process of its own (`python -m potstill.serving.rotation FOLDER`), so that none of its work meets a request;
may be killed at any moment and run again: a line counts from its JSON lines until its Parquet file is in place, whole,
read back and equal, and from there afterwards. The lines themselves stay for GRACE_S longer, for who is reading them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from potstill.captured_files import (
    COLUMNS,
    INDEX,
    ROTATED,
    captured_lines,
    closed_lines,
    folder_locked,
    is_captured,
    parquet_lines,
    put_in_place,
    table_of,
    write_table,
)
from potstill.errors import DamagedLine
from potstill.feedback_join import EXCHANGES, FEEDBACK
from potstill.records import Json

GRACE_S = 900.0
LINES_AT_ONCE = 4096
MAKE_ROOM_TO = 0.8  # of the bytes allowed, so that room is made seldom
Step = Callable[[str], None]


@dataclass
class Rotated:
    """What a pass did: files made into Parquet, rows in them, exchanges dropped to make room, the bytes left.

    `kept` names files that stay as lines since they hold something that a row cannot.
    """

    files: int = 0
    rows: int = 0
    dropped: int = 0
    size_bytes: int = 0
    kept: tuple[str, ...] = ()


def rotate(
    folder: Path, *, max_bytes: int | None = None, grace_s: float = GRACE_S, step: Step = lambda _: None
) -> Rotated:
    """One pass over the folder; raises OSError where the disk refuses, after which it may be run again.

    `step` is told of every step before it is taken.
    """
    done = Rotated()
    with folder_locked(folder):
        for path in sorted(folder.glob(EXCHANGES)):
            if path.with_suffix(".parquet").exists():
                if time.time() - path.with_suffix(".parquet").stat().st_mtime >= grace_s:
                    step(f"remove {path.name}")
                    path.unlink()
                continue
            with closed_lines(path) as closed:
                if closed:
                    _convert(path, done, step)
        if max_bytes is not None and size_of(folder) > MAKE_ROOM_TO * max_bytes:
            _make_room(folder, int(MAKE_ROOM_TO * max_bytes), done, step)
        done.size_bytes = size_of(folder)
    return done


def size_of(folder: Path) -> int:
    """Bytes of the captured files of a folder."""
    found = 0
    with os.scandir(folder) as entries:
        for each in entries:
            if is_captured(Path(each.name)):
                try:
                    found += each.stat().st_size
                except FileNotFoundError:
                    continue
    return found


def _convert(path: Path, done: Rotated, step: Step) -> None:
    """Put the rows of a file of lines in its place; a file without any is removed."""
    made = path.with_suffix(".parquet")
    step(f"write {made.name}")
    try:
        rows = write_table(made, _tables(path))
    except _NoRow as fault:
        made.with_name(made.name + ".partial").unlink(missing_ok=True)
        done.kept = (*done.kept, f"{path.name}: {fault}")
        return
    partial = made.with_name(made.name + ".partial")
    if not rows:
        partial.unlink()
        path.unlink()
        return
    step(f"read back {made.name}")
    if not _are_equal(path, partial):
        partial.unlink()
        raise OSError(f"{made.name}: reads back unlike {path.name}; the lines stay")
    step(f"put in place {made.name}")
    put_in_place(made)
    done.files, done.rows = done.files + 1, done.rows + rows


class _NoRow(Exception):
    """A line that the columns cannot hold."""


def _tables(path: Path) -> Iterator[Any]:
    waiting: list[Json] = []
    try:
        for number, line in captured_lines(path):
            if not isinstance(line.get("id"), str) or not line.keys() <= set(COLUMNS):
                raise _NoRow(f"line {number} has other fields than an exchange")
            waiting.append(line)
            if len(waiting) == LINES_AT_ONCE:
                yield _table(waiting)
                waiting = []
    except DamagedLine as fault:
        raise _NoRow(str(fault)) from fault
    if waiting:
        yield _table(waiting)


def _table(lines: list[Json]) -> Any:
    try:
        return table_of(lines)
    except (TypeError, ValueError) as fault:  # pyarrow's own faults are among these
        raise _NoRow(f"a line is no exchange: {fault}") from fault


def _are_equal(lines: Path, table: Path) -> bool:
    """Whether a Parquet file says line by line what the file of lines does; a field without a value says nothing."""
    pairs = zip_longest((line for _, line in captured_lines(lines)), parquet_lines(table))
    return all(one is not None and other is not None and _said(one) == _said(other) for one, other in pairs)


def _said(line: Json) -> Json:
    return {name: value for name, value in line.items() if value is not None}


def _make_room(folder: Path, most: int, done: Rotated, step: Step) -> None:
    """Drop the oldest exchanges that nobody gave an opinion on, until the folder has `most` bytes; feedback stays."""
    for path in sorted(folder.glob(EXCHANGES)):
        if path.with_suffix(".parquet").exists():
            step(f"remove {path.name}")
            path.unlink()  # counted twice only for who still reads it
    judged = _judged(folder)
    try:
        for path in sorted(folder.glob(ROTATED)):
            if size_of(folder) <= most:
                return
            before = done.dropped
            _keep_judged(path, judged, done, step)
            if done.dropped > before:
                (folder / INDEX).unlink(missing_ok=True)  # made again from what is left
    except DamagedLine as fault:
        raise OSError(str(fault)) from fault


def _judged(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.glob(FEEDBACK):
        try:
            found.update(str(line.get("id")) for _, line in captured_lines(path))
        except DamagedLine as fault:  # then it is not known whose feedback it was: nothing may be dropped
            raise OSError(f"no room can be made: {fault}") from fault
    return found


def _keep_judged(path: Path, judged: set[str], done: Rotated, step: Step) -> None:
    lines = list(parquet_lines(path))
    kept = [each for each in lines if each["id"] in judged or each.get("feedback")]
    if len(kept) == len(lines):
        return
    step(f"drop from {path.name}")
    if kept:
        write_table(path, iter([table_of(kept)]))
        step(f"put in place {path.name}")
        put_in_place(path)
    else:
        path.unlink()
    done.dropped += len(lines) - len(kept)


def main() -> int:
    """One pass; prints what it did as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--max-bytes", type=int)
    args = parser.parse_args()
    os.nice(10)
    try:
        done = rotate(args.folder, max_bytes=args.max_bytes)
    except OSError as fault:
        print(fault, file=sys.stderr)
        return 1
    print(json.dumps(asdict(done)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
