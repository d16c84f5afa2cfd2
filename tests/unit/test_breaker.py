"""Promises of the circuit breaker, in any order of outcomes and time."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from potstill.serving.breaker import Breaker, BreakerOpen, BreakerSettings, Passage

SETTINGS = BreakerSettings(window=6, failures=3, open_s=2, longest_s=16)


class AnyOrder(RuleBasedStateMachine):
    """Requests come, end well or badly or are left, late or soon, while time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker(SETTINGS, lambda: self.now)
        self.under_way: list[tuple[Passage, int, bool]] = []
        self.outcomes: list[bool] = []
        self.turn = 0

    def _turned(self) -> None:
        if self.breaker.turn != self.turn:
            self.turn, self.outcomes = self.breaker.turn, []

    @rule()
    def comes(self) -> None:
        state = self.breaker.state
        trials = sum(trial and turn == self.breaker.turn for _, turn, trial in self.under_way)
        try:
            passage = self.breaker.enter()
        except BreakerOpen as refused:
            assert state == "open" or (state == "half_open" and trials == 1)
            assert 0 < refused.seconds < SETTINGS.longest_s + 1e-6  # noqa: PT017
            return
        assert state == "closed" or (state == "half_open" and trials == 0)
        self.under_way.append((passage, self.breaker.turn, state == "half_open"))

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 50), outcome=st.sampled_from(["succeeded", "failed", "left"]), twice=st.booleans())
    def ends(self, which: int, outcome: str, twice: bool) -> None:
        passage, turn, trial = self.under_way.pop(which % len(self.under_way))
        before, counts = self.breaker.state, turn == self.breaker.turn
        getattr(passage, outcome)()
        if twice:
            passage.failed()  # a passage counts once
        if not counts:
            assert self.breaker.turn == self.turn, "what began before a turn says nothing after it"
        elif trial:
            expected = {"succeeded": "closed", "failed": "open", "left": before}[outcome]
            assert self.breaker.state == expected
        elif outcome != "left":
            self.outcomes = [*self.outcomes, outcome == "succeeded"][-SETTINGS.window :]
            bad = self.outcomes.count(False)
            opens = bad >= SETTINGS.failures and 2 * bad >= len(self.outcomes)
            assert (self.breaker.state == "open") == opens
        self._turned()

    @rule(seconds=st.floats(0.01, 20))
    def waits(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.integers(1, 100))
    def rests(self, seconds: int) -> None:
        self.breaker.rest(seconds)
        assert self.breaker.state == "open"
        self._turned()

    @invariant()
    def is_never_left_alone_for_ever(self) -> None:
        later = self.now
        self.now += SETTINGS.longest_s + 0.01
        assert self.breaker.state != "open"
        self.now = later


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_pauses_grow_with_every_failed_trial_and_begin_anew_after_a_good_one() -> None:
    now = 0.0
    breaker = Breaker(SETTINGS, lambda: now)
    for _ in range(3):
        breaker.enter().failed()
    pauses = []
    for _ in range(5):
        with pytest.raises(BreakerOpen) as refused:
            breaker.enter()
        pauses.append(refused.value.seconds)
        now += refused.value.seconds
        breaker.enter().failed()
    assert pauses == [2, 4, 8, 16, 16]
    now += 16
    breaker.enter().succeeded()
    assert breaker.state == "closed"
    for _ in range(3):
        breaker.enter().failed()
    with pytest.raises(BreakerOpen) as refused:
        breaker.enter()
    assert refused.value.seconds == 2


def test_a_trial_that_nobody_waited_for_lets_the_next_one_try() -> None:
    now = 0.0
    breaker = Breaker(SETTINGS, lambda: now)
    for _ in range(3):
        breaker.enter().failed()
    now = 2.0
    breaker.enter().left()
    breaker.enter().succeeded()
    assert breaker.state == "closed"
