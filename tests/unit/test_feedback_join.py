"""Feedback that came later finds its exchange, in the order of its time, whatever the order of the lines."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import DamagedLine
from potstill.feedback_join import LaterFeedback, read_feedback_line
from potstill.records import Exchange, Feedback


def exchange(name: str, *opinions: Feedback) -> Exchange:
    request = {"messages": [{"role": "user", "content": "a"}]}
    return Exchange(name, request, {"choices": [{"message": {}}]}, feedback=opinions)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 59)), unique=True), st.integers())
def test_every_opinion_is_joined_once_to_its_exchange(said: list[tuple[str, int]], seed: int) -> None:
    random.Random(seed).shuffle(said)
    later: LaterFeedback[tuple[str, int]] = LaterFeedback()
    for each in said:
        later.add(each[0], Feedback("score", "s", each[1], time=f"2026-01-05T08:00:{each[1]:02}Z"), each)
    first = Feedback("thumbs", "", True)
    for name in "ab":
        found = later.join(exchange(name, first)).feedback
        assert [each.value for each in found] == [True, *sorted(at for who, at in said if who == name)]


@pytest.mark.parametrize(
    "line",
    [
        [],
        {"id": "a"},
        {"id": 3, "feedback": {"kind": "thumbs", "value": True}},
        {"feedback": {}},
        {"id": "a", "feedback": {"kind": "?"}},
    ],
)
def test_what_is_no_feedback_line_is_refused(line: Any) -> None:
    with pytest.raises(DamagedLine, match="not a feedback line"):
        read_feedback_line(line)
