"""One trial as a row of the sweep's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .spaces import Values

State = Literal["running", "done", "pruned", "nothing learned", "failed"]
Metric = Literal["score", "loss"]


@dataclass(frozen=True, slots=True)
class Row:
    """Settings and figures of one trial.

    `score` is that of the adapter kept, on `rows` validation rows, `low` to `high` its 95 % interval where it has one;
    `curve` is the sweep's metric at each evaluation, the one before training first.
    """

    number: int
    values: Values
    state: State = "running"
    default: bool = False
    score: float | None = None
    low: float | None = None
    high: float | None = None
    rows: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    minutes: float | None = None
    folder: str | None = None
    reason: str | None = None
    curve: Sequence[float] = ()

    def value(self, metric: Metric) -> float | None:
        """What the sweep optimises: None unless the trial is done."""
        found = self.score if metric == "score" else self.loss
        return found if self.state == "done" else None

    def shown_score(self) -> str:
        """`0.912 [0.899, 0.924]`, or a dash."""
        if self.score is None:
            return "-"
        return f"{self.score:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if self.low is not None else "")


def ranked(rows: Sequence[Row], metric: Metric) -> list[Row]:
    """Finished trials, best first: by score with the loss breaking ties, or by loss; the earlier one of equals."""

    def order(row: Row) -> tuple[float, float, int]:
        loss = float("inf") if row.loss is None else row.loss
        return (-(row.score or 0.0), loss, row.number) if metric == "score" else (loss, 0.0, row.number)

    return sorted((row for row in rows if row.value(metric) is not None), key=order)
