"""The order of a sweep: go on with what was running, then propose, try, record, until enough was tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from potstill.errors import PotstillError
from potstill.progress import say

from .proposals import propose
from .rows import Row
from .settings import Scalar
from .spaces import as_text
from .study import Study

CRASHES_IN_A_ROW = 3  # so many in a row are not about settings

Try = Callable[[Row, Sequence[Row]], Row]
"""Runs a trial; gives its row ended. Given the running row and all rows before it."""


def search(
    study: Study,
    current: Mapping[str, Scalar],
    trials: int,
    seed: int,
    attempt: Try,
    ended: Callable[[Row], None],
) -> list[Row]:
    """Every row once `trials` have ended; the first is the recipe as it stands (`current`).

    Raises what `attempt` raises, with the trial left running for the next time.
    """
    while True:
        rows = study.rows()
        running = next((row for row in rows if row.state == "running"), None)
        if running is None:
            _refuse_crashes(rows)
            if len(rows) >= trials:
                return rows
            values = propose(study.spaces, rows, study.metric, seed) if rows else dict(current)
            if values is None:
                say(f"sweep: every combination was tried, {len(rows)} trials in all")
                return rows
            running = study.begin(values, default=not rows)
        shown = ", ".join(f"{key.removeprefix('train.')} {as_text(value)}" for key, value in running.values.items())
        say(f"trial {running.number} ({trials} in all): {shown}" + (", as the recipe has it" * running.default))
        row = attempt(running, rows[: running.number])
        study.end(row)
        say(f"trial {row.number}: {_result(row)}")
        ended(row)


def _refuse_crashes(rows: Sequence[Row]) -> None:
    last = rows[-CRASHES_IN_A_ROW:]
    if len(last) == CRASHES_IN_A_ROW and all(row.state == "failed" for row in last):
        raise PotstillError(
            f"the last {CRASHES_IN_A_ROW} trials crashed, the last with: {last[-1].reason}; "
            "`potstill train` with the same settings shows whether the machine or the settings are at fault"
        )


def _result(row: Row) -> str:
    if row.state != "done":
        return f"{row.state}: {row.reason}"
    return f"score {row.shown_score()}, loss {'-' if row.loss is None else f'{row.loss:.4f}'}"
