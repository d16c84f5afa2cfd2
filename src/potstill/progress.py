"""Progress with rate and time left, on standard error: a live line on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
LOG_EVERY_S = 10.0
DRAW_EVERY_S = 0.2


_hushed = False


def hush() -> None:
    """Say and draw nothing from here on: for processes that do what another one reports."""
    global _hushed
    _hushed = True


def say(text: str) -> None:
    """One line for the person who watches; never part of the result (that goes to standard output)."""
    if not _hushed:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """Counts `done` of `total` (None when unknown) in `unit`s; use as a context manager."""

    def __init__(self, what: str, total: int | None = None, unit: str = "rows") -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self.note = ""
        self._start = self._drawn = time.monotonic()
        self._live = sys.stderr.isatty() and not _hushed

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        took = time.monotonic() - self._start
        if kind is None and took > 2:
            self._write(f"{self.what}: {self.done:,} {self.unit} in {_span(took)} ({self.rate():,.1f}/s)", last=True)
        elif self._live:
            sys.stderr.write("\n")

    def advance(self, by: int = 1, note: str | None = None) -> None:
        self.done += by
        if note is not None:
            self.note = note
        now = time.monotonic()
        if now - self._drawn >= (DRAW_EVERY_S if self._live else LOG_EVERY_S):
            self._drawn = now
            self._write(self.line())

    def rate(self) -> float:
        """Units a second since the start."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def line(self) -> str:
        rate = self.rate()
        text = f"{self.what}: {self.done:,}"
        if self.total:
            text += f"/{self.total:,}"
        text += f" {self.unit}, {rate:,.1f}/s"
        if self.total and rate > 0:
            text += f", {_span(max(0, self.total - self.done) / rate)} left"
        return f"{text}, {self.note}" if self.note else text

    def _write(self, text: str, last: bool = False) -> None:
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{text}" + ("\n" if last else ""))
            sys.stderr.flush()
        else:
            say(text)


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "rows") -> Iterator[T]:
    """Yield the items while showing progress."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
