"""Captured exchanges with the feedback that came later: what `distill` reads, from the two kinds of files in a folder.

`exchanges-*.jsonl` holds one exchange a line, `feedback-*.jsonl` one `{"id", "feedback": {...}}` a line. A line that a
killed server left unfinished (the last of its file, without a line end) was never acknowledged as durable: passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from potstill.errors import DamagedLine
from potstill.feedback_join import EXCHANGES, FEEDBACK, LaterFeedback, read_feedback_line
from potstill.records import Exchange, Json


def join(folder: Path) -> Iterator[Exchange]:
    """Every captured exchange with its feedback in the order of its time; raises DamagedLine naming file and line."""
    later: LaterFeedback[str] = LaterFeedback()
    for where, line in _lines(folder, FEEDBACK):
        try:
            later.add(*read_feedback_line(line), where)
        except DamagedLine as fault:
            raise DamagedLine(f"{where}: {fault}") from fault
    for where, line in _lines(folder, EXCHANGES):
        try:
            yield later.join(Exchange.from_json(line))
        except DamagedLine as fault:
            raise DamagedLine(f"{where}: {fault}") from fault


def _lines(folder: Path, pattern: str) -> Iterator[tuple[str, Json]]:
    for path in sorted(folder.glob(pattern)):
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n") or line.isspace():  # blank: forgotten since
                    continue
                try:
                    found = orjson.loads(line)
                except orjson.JSONDecodeError as fault:
                    raise DamagedLine(f"{path}:{number}: not JSON ({fault})") from fault
                if not isinstance(found, dict):
                    raise DamagedLine(f"{path}:{number}: found {type(found).__name__}, expected an object")
                yield f"{path}:{number}", found
