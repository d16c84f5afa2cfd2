"""Promises of shortening: within the limit where that can be, instructions whole, newest turn there, calls answered."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.fingerprints import prompt_text
from distillation.shorten import MARKER, shorten, turns_of
from potstill.records import Message


def words(text: str) -> int:
    return len(text.split())


def size(messages: list[Message], count: Any = len) -> int:
    return sum(count(prompt_text([each])) for each in messages)


def call(identity: str) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}


texts = st.text(alphabet="abc de\n", max_size=80)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Instructions, questions, answers, calls with one or two results (some after an unrelated message)."""
    messages: list[Message] = []
    for at in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["system", "developer", "user", "assistant", "calls", "parts"]))
        if kind == "calls":
            calls = [call(f"c{at}{each}") for each in range(draw(st.integers(1, 2)))]
            messages.append({"role": "assistant", "content": draw(st.none() | texts), "tool_calls": calls})
            results = [{"role": "tool", "tool_call_id": each["id"], "content": draw(texts)} for each in calls]
            messages += results[:1]
            if draw(st.booleans()):
                messages.append({"role": "system", "content": draw(texts)})
            messages += results[1:]
        elif kind == "parts":
            picture = {"type": "image_url", "image_url": {"url": "x"}}
            messages.append({"role": "user", "content": [{"type": "text", "text": draw(texts)}, picture]})
        else:
            messages.append({"role": kind, "content": draw(texts)})
    return messages


def bare(messages: list[Message]) -> list[Message]:
    """What must stay, with every text that may be cut no longer than the marker."""
    turns = turns_of(messages)
    stay: set[int] = set()
    if turns:
        stay.update(max(turns, key=lambda turn: turn[-1]))
        stay.update(([turn for turn in turns if messages[turn[0]]["role"] == "user"] or [[]])[-1])

    def least(text: Any) -> Any:
        return MARKER if isinstance(text, str) and len(text) > len(MARKER) else text

    found = []
    for at, each in enumerate(copy.deepcopy(messages)):
        if each["role"] in ("system", "developer"):
            found.append(each)
        elif at in stay:
            content = each.get("content")
            if isinstance(content, list):
                content[0]["text"] = least(content[0]["text"])
            else:
                each["content"] = least(content)
            found.append(each)
    return found


@given(conversations(), st.integers(0, 300))
def test_what_comes_out_is_within_the_limit_whenever_that_can_be(messages: list[Message], limit: int) -> None:
    result, cut = shorten(messages, limit, len)
    fits = size(result) <= limit
    assert fits == (cut is None or cut.fits)
    if not fits:
        assert size(bare(messages)) > limit
    if cut is not None:
        assert (cut.before, cut.after) == (size(messages), size(result))


@given(conversations(), st.integers(0, 300))
def test_instructions_newest_turn_and_order_stay(messages: list[Message], limit: int) -> None:
    before = copy.deepcopy(messages)
    result, cut = shorten(messages, limit, len)
    assert messages == before
    dropped = set(cut.dropped if cut else ())
    changed = set(cut.shortened if cut else ())
    left = [at for at in range(len(messages)) if at not in dropped]
    assert len(left) == len(result)
    for at, each in zip(left, result, strict=True):
        assert at in changed or each == messages[at]
        assert each["role"] == messages[at]["role"]
        assert each.get("tool_calls") == messages[at].get("tool_calls")
    whole = {at for at, each in enumerate(messages) if each["role"] in ("system", "developer")}
    assert not whole & (dropped | changed)
    talk = [at for at in range(len(messages)) if at not in whole]
    asked = [at for at in talk if messages[at]["role"] == "user"]
    assert not {*talk[-1:], *asked[-1:]} & dropped


@given(conversations(), st.integers(0, 300))
def test_a_result_is_never_without_its_call_nor_a_call_without_its_results(messages: list[Message], limit: int) -> None:
    result, _ = shorten(messages, limit, len)
    called = {each["id"] for message in result for each in message.get("tool_calls") or []}
    answered = {message["tool_call_id"] for message in result if message["role"] == "tool"}
    assert called == answered


@given(conversations(), st.integers(0, 300), st.sampled_from([len, words]))
def test_shortening_twice_changes_nothing_more(messages: list[Message], limit: int, count: Any) -> None:
    once, _ = shorten(messages, limit, count)
    assert shorten(once, limit, count)[0] == once


@given(conversations(), st.integers(0, 300))
def test_a_cut_conversation_begins_with_the_user_where_there_is_one(messages: list[Message], limit: int) -> None:
    result, cut = shorten(messages, limit, len)
    roles = [each["role"] for each in result if each["role"] not in ("system", "developer")]
    if cut is not None and "user" in roles:
        assert roles[0] == "user"


def test_the_newest_turns_that_fit_stay_and_the_cut_says_so() -> None:
    messages = [{"role": "system", "content": "be kind"}]
    for at in range(6):
        messages += [{"role": "user", "content": f"question {at}"}, {"role": "assistant", "content": f"answer {at}"}]
    messages.append({"role": "user", "content": "question 6"})
    result, cut = shorten(messages, 17, words)  # the answer to question 4 would fit, without it
    assert [each["content"] for each in result] == ["be kind", "question 5", "answer 5", "question 6"]
    assert cut is not None
    assert cut.dropped == tuple(range(1, 11))
    assert str(cut) == "42 -> 12: 10 older messages dropped"


def test_an_agents_steps_go_before_the_question_that_they_serve() -> None:
    messages: list[Message] = [{"role": "user", "content": "find my booking"}]
    for at in range(8):
        messages.append({"role": "assistant", "content": None, "tool_calls": [call(f"c{at}")]})
        messages.append({"role": "tool", "tool_call_id": f"c{at}", "content": "nothing found " * 3})
    result, _ = shorten(messages, 30, words)
    assert result[0]["content"] == "find my booking"
    assert result[-1] == messages[-1]
    assert len(result) < len(messages)


def test_one_turn_that_is_too_long_loses_its_middle_and_tools_count() -> None:
    messages = [{"role": "system", "content": "sum up"}, {"role": "user", "content": "BEGIN " + "x" * 500 + " END"}]
    result, cut = shorten(messages, 200, len)
    assert result[1]["content"].startswith("BEGIN ")
    assert result[1]["content"].endswith(" END")
    assert result[1]["content"].count(MARKER) == 1
    assert cut is not None
    assert cut.after == 200  # not a character given away
    assert (cut.dropped, cut.shortened) == ((), (1,))
    tools = [{"type": "function", "function": {"name": "look"}}]
    with_tools, told = shorten(messages, 200, len, tools)
    assert told is not None
    assert told.after == 200
    assert size(with_tools) < size(result)


def test_a_limit_that_instructions_alone_pass_is_said() -> None:
    result, cut = shorten([{"role": "system", "content": "x" * 50}, {"role": "user", "content": "hi"}], 20, len)
    assert cut is not None
    assert not cut.fits
    assert "still too long" in str(cut)
    assert [each["role"] for each in result] == ["system", "user"]


@pytest.mark.parametrize("limit", [0, 100])
def test_no_messages_are_no_fault(limit: int) -> None:
    assert shorten([], limit, len) == ([], None)
