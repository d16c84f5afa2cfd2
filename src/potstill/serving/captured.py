"""Captured exchanges with the feedback that came later: what `distill` reads, from the files of a folder.

`exchanges-*` holds one exchange a line or row, `feedback-*.jsonl` one `{"id", "feedback": {...}}` a line
(`potstill.captured_files`). Every acknowledged line is given exactly once, whatever was killed while it was moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from potstill.captured_files import captured_lines, exchange_files
from potstill.errors import DamagedLine
from potstill.feedback_join import FEEDBACK, LaterFeedback, read_feedback_line
from potstill.records import Exchange


def join(folder: Path) -> Iterator[Exchange]:
    """Every captured exchange with its feedback in the order of its time; raises DamagedLine naming file and line."""
    later: LaterFeedback[str] = LaterFeedback()
    for path in sorted(folder.glob(FEEDBACK)):
        for number, line in captured_lines(path):
            where = f"{path}:{number}"
            try:
                later.add(*read_feedback_line(line), where)
            except DamagedLine as fault:
                raise DamagedLine(f"{where}: {fault}") from fault
    for path in exchange_files(folder):
        for number, line in captured_lines(path):
            try:
                yield later.join(Exchange.from_json(line))
            except DamagedLine as fault:
                raise DamagedLine(f"{path}:{number}: {fault}") from fault
