"""A circuit breaker: what fails again and again is left alone for a while, then tried with one request.

    closed      requests pass; of the last `window` outcomes are `failures` or more bad and at least half: open
    open        none pass, for a pause that doubles with every failed trial
    half open   the pause is over: one request passes at a time; its success closes, its failure opens again

Pattern: Nygard, "Release It!", 2007, chapter 5. Pure but for the clock, one event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe import Section

State = Literal["closed", "open", "half_open"]


class BreakerSettings(Section):
    """When the large model is left alone."""

    window: Annotated[int, Field(ge=1, le=1000, description="last outcomes that are looked at")] = 20
    failures: Annotated[int, Field(ge=1, description="bad ones among them that open it, if they are half or more")] = 5
    open_s: Annotated[float, Field(gt=0, description="first pause; doubles with every failed trial")] = 5.0
    longest_s: Annotated[float, Field(gt=0)] = 60.0


class BreakerOpen(Exception):
    """Nothing may pass for another `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"left alone for another {seconds:.1f} s")
        self.seconds = seconds


class Passage:
    """One request that was let through; exactly one outcome counts, `left` (nobody waited) counts for neither."""

    __slots__ = ("_breaker", "_trial", "_turn")

    def __init__(self, breaker: Breaker, trial: bool) -> None:
        self._breaker: Breaker | None = breaker
        self._trial, self._turn = trial, breaker.turn

    def succeeded(self) -> None:
        self._end(True)

    def failed(self) -> None:
        self._end(False)

    def left(self) -> None:
        self._end(None)

    def _end(self, good: bool | None) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.ended(self._trial, self._turn, good)


class Breaker:
    """`turn` counts how often it opened or closed: what was let through before a turn says nothing after it."""

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float] = monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._outcomes: deque[bool] = deque(maxlen=settings.window)
        self._pause = settings.open_s
        self._until: float | None = None
        self._trying = False
        self.turn = 0

    @property
    def state(self) -> State:
        if self._until is None:
            return "closed"
        return "open" if self._clock() < self._until else "half_open"

    def enter(self) -> Passage:
        """Let a request through; raises BreakerOpen."""
        state = self.state
        if state == "closed":
            return Passage(self, False)
        if state == "open" or self._trying:
            assert self._until is not None
            raise BreakerOpen(max(self._until - self._clock(), 0.0) or self._settings.open_s)
        self._trying = True
        return Passage(self, True)

    def rest(self, seconds: float) -> None:
        """Leave it alone for so long, as it asked for (Retry-After); no failure."""
        until = self._clock() + min(seconds, self._settings.longest_s)
        if self._until is None or self._until < until:
            self._turn_to(until)

    def ended(self, trial: bool, turn: int, good: bool | None) -> None:
        """The outcome of a passage; None where nobody waited for it."""
        if turn != self.turn:
            return
        if trial:
            self._trying = False
            if good:
                self._pause = self._settings.open_s
                self._turn_to(None)
            elif good is False:
                self._pause = min(2 * self._pause, self._settings.longest_s)
                self._turn_to(self._clock() + self._pause)
        elif good is not None:
            self._outcomes.append(good)
            bad = self._outcomes.count(False)
            if bad >= self._settings.failures and 2 * bad >= len(self._outcomes):
                self._turn_to(self._clock() + self._pause)

    def _turn_to(self, until: float | None) -> None:
        self._until, self._trying = until, False
        self.turn += 1
        self._outcomes.clear()
