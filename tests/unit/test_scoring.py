"""The score while training: on which rows, and with which interval. A stand-in task reads scores out of the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.completers.transformers import TransformersCompleter
from potstill.intervals import wilson
from potstill.records import Example
from potstill.tasks.base import Metric, Parsed
from potstill.tasks.extraction import SLOT_F1
from training.scoring import Score, Scorer, sample


def example(at: int, conversation: str | None = None) -> Example:
    return Example(
        id=f"e{at}", conversation=conversation or f"c{at}", messages=[{"role": "user", "content": "?"}],
        full_messages=[], answer="{}", teacher_answer="{}", teacher_text="{}",
    )  # fmt: skip


def scored(
    monkeypatch: pytest.MonkeyPatch,
    metric: Metric,
    answers: Sequence[dict[str, float]],
    conversations: int | None = None,
) -> Score:
    """The score of answers that hold their own components, in so many conversations (one each without it)."""
    task = SimpleNamespace(
        metrics=[metric], constraint=lambda: None, parse=lambda text, tools: Parsed(value=json.loads(text)),
        score=lambda value, gold: value,
    )  # fmt: skip
    texts = [SimpleNamespace(text=json.dumps(each)) for each in answers]
    monkeypatch.setattr(
        TransformersCompleter, "around", lambda *_: SimpleNamespace(complete=lambda requests: texts[: len(requests)])
    )
    examples = [example(at, f"c{at % conversations}" if conversations else None) for at in range(len(answers))]
    model: Any = SimpleNamespace(training=False, eval=lambda: None, train=lambda mode: None)
    shared: Any = SimpleNamespace(task=lambda: task)
    contract: Any = SimpleNamespace(max_tokens=8)
    found = Scorer(shared, model, None, examples, len(examples), contract)()
    assert found is not None
    return found


MEAN = Metric("mean", {"right": 1.0})


def test_a_rate_of_rows_has_wilsons_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scored(monkeypatch, MEAN, [{"right": float(at % 4 > 0)} for at in range(40)])
    assert (found.value, found.rows, found.low, found.high) == (0.75, 40, *wilson(30, 40))
    assert found.beyond_chance(found.parts) == 0
    assert found.beyond_chance([{"right": 0.0} for _ in range(40)]) == 1


def test_fractions_that_add_up_to_a_whole_number_are_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scored(monkeypatch, MEAN, [{"right": (0.25, 0.75)[at % 2]} for at in range(40)])
    low, high = wilson(20, 40)
    assert (found.value, found.rows) == (0.5, 40)
    assert low < found.low < 0.5 < found.high < high  # type: ignore[operator]


def test_rows_of_one_conversation_count_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"right": float(at % 10 < 5)} for at in range(100)]
    apart = scored(monkeypatch, MEAN, answers)
    together = scored(monkeypatch, MEAN, answers, conversations=10)
    assert together.low < apart.low - 0.1  # type: ignore[operator]


def test_slot_f1_has_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"tp": float(at % 3), "fp": float(at % 2), "fn": 1.0} for at in range(60)]
    found = scored(monkeypatch, SLOT_F1, answers)
    assert found.value == pytest.approx(2 * 60 / (2 * 60 + 30 + 60))
    assert 0 < found.low < found.value < found.high < 1  # type: ignore[operator]
    assert scored(monkeypatch, SLOT_F1, answers) == found


def test_scored_rows_are_drawn_from_all_of_them_and_the_same_each_time() -> None:
    rows = [example(at) for at in range(1000)]
    drawn = sample(rows, 100)
    places = [int(each.id[1:]) for each in drawn]
    assert len(set(places)) == 100
    assert places == sorted(places)
    assert min(sum(first <= at < first + 250 for at in places) for first in (0, 250, 500, 750)) >= 10
    assert {each.id for each in sample(rows[::-1], 100)} == {each.id for each in drawn}
    assert sample(rows, 2000) == rows
    assert sample(rows, 0) == []
