"""Turns: whatever is chosen, every assistant turn is learnt from the right history, and none twice."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distillation.turns import Trace, Turns, trace, turn_hashes, turn_of, unlogged_turns, whole
from distillation.turns import rows_of as rows_by
from potstill.records import Exchange, Feedback, Json, Learn, canonical_json
from potstill.tasks import ToolCalls

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def rows_of(exchanges: list[Exchange], turns: Turns) -> tuple[list[tuple[Exchange, Learn]], dict[str, str]]:
    return rows_by(exchanges, turns, ToolCalls())


def traced(source: Exchange) -> Trace:
    return trace(source, ToolCalls(), {})


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def said(text: str) -> Json:
    return {"role": "assistant", "content": text}


def called(name: str, **arguments: Any) -> Json:
    function = {"name": name, "arguments": canonical_json(arguments)}
    call = {"id": "c1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def exchange(name: str, messages: list[Json], answer: Json, *feedback: Feedback, **metadata: Any) -> Exchange:
    return Exchange(
        name, {"model": "m", "messages": messages, "tools": TOOLS}, {"choices": [{"message": answer}]},
        latency_ms=5.0, metadata={"conversation": "c"} | metadata, feedback=feedback,
    )  # fmt: skip


def conversation(turns: int, *, logged: set[int] | None = None, system: bool = True) -> list[Exchange]:
    """The exchanges of one straight conversation, with calls at every third turn; `logged` says which were."""
    messages: list[Json] = [{"role": "system", "content": "Be brief."}] if system else []
    found = []
    for at in range(turns):
        messages.append(user(f"question {at}"))
        answer = called("look", at=at) if at % 3 == 2 else said(f"answer {at}")
        if logged is None or at in logged:
            found.append(exchange(f"e{at}", list(messages), answer))
        messages.append(answer)
        if answer.get("tool_calls"):
            messages.append({"role": "tool", "tool_call_id": "c1", "content": f"found {at}"})
    return found


def learnt(exchanges: list[Exchange], turns: Turns) -> list[str]:
    """Every turn that would be supervised, as (what stands before it, it), in order of the rows."""
    found = []
    for row, learn in rows_of(exchanges, turns)[0]:
        everything = [*row.messages, row.answer]
        places = traced(row).assistant if learn == "conversation" else [len(everything) - 1]
        found += [canonical_json(everything[: at + 1]) for at in places]
    return found


some = st.integers(1, 9).flatmap(
    lambda turns: st.tuples(st.just(turns), st.sets(st.integers(0, turns - 1), min_size=1), st.booleans())
)


@given(some, st.integers())
def test_every_and_whole_learn_the_same_turns_of_a_straight_conversation_each_once(
    drawn: tuple[int, set[int], bool], seed: int
) -> None:
    turns, logged, system = drawn
    exchanges = conversation(turns, logged=logged, system=system)
    random.Random(seed).shuffle(exchanges)
    every, once = learnt(exchanges, "every"), learnt(exchanges, "whole")
    assert sorted(every) == sorted(once)
    assert len(every) == len(set(every)) == max(logged) + 1


@given(some)
def test_every_keeps_what_was_logged_and_ids_are_unique(drawn: tuple[int, set[int], bool]) -> None:
    turns, logged, system = drawn
    exchanges = conversation(turns, logged=logged, system=system)
    rows = [row for row, _ in rows_of(exchanges, "every")[0]]
    assert [row for row in rows if "#" not in row.id] == exchanges
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        Exchange.from_json(row.to_json())


@given(some)
def test_derived_ids_stay_when_the_conversation_grows(drawn: tuple[int, set[int], bool]) -> None:
    turns, logged, system = drawn
    before = rows_of(conversation(turns, logged=logged, system=system), "every")[0]
    after = rows_of(conversation(turns + 2, logged=logged | {turns + 1}, system=system), "every")[0]
    assert {row.id for row, _ in before} <= {row.id for row, _ in after}


def test_a_derived_turn_carries_scores_but_not_the_opinions_on_another_answer() -> None:
    opinions = (Feedback("score", "task_success", 1.0), Feedback("thumbs", "", True), Feedback("correction", "", "no"))
    source = exchange("e", [user("a"), said("b"), user("c")], said("d"), *opinions, split="test")
    (turn, _), _ = rows_of([source], "every")[0]
    assert (turn.id, turn.messages, turn.answer) == ("e#1", [user("a")], said("b"))
    assert turn.tools == source.tools
    assert turn.conversation == "c"
    assert turn.metadata["split"] == "test"
    assert [each.kind for each in turn.feedback] == ["score"]
    assert turn.latency_ms is None


def test_an_opening_assistant_turn_is_no_answer_to_anything() -> None:
    source = exchange("e", [said("Hello!"), user("a")], said("b"))
    assert unlogged_turns([traced(source)]) == {}
    assert traced(source).assistant == (2,)


def test_whole_leaves_out_beginnings_with_the_reason() -> None:
    rows, reasons = rows_of(conversation(3), "whole")
    assert [(row.id, learn) for row, learn in rows] == [("e2", "conversation")]
    assert reasons == {f"e{at}": "all its turns are learnt in the whole conversation: e2" for at in (0, 1)}


def test_a_branch_is_kept_and_learns_only_what_is_new() -> None:
    straight = conversation(3)
    again = exchange("again", straight[1].messages, said("another answer 1"))
    rows, reasons = rows_of([*straight, again], "whole")
    assert {row.id: learn for row, learn in rows} == {"e2": "conversation", "again": "answer"}
    assert set(reasons) == {"e0", "e1"}


def test_a_turn_that_feedback_objects_to_is_never_learnt_from_history() -> None:
    for opinion in (Feedback("correction", "", "better"), Feedback("thumbs", "", "down")):
        exchanges = conversation(4)
        exchanges[1] = exchange("e1", exchanges[1].messages, exchanges[1].answer, opinion)
        plan = whole([traced(each) for each in exchanges])
        assert plan.learn == {"e0": "answer", "e1": "answer", "e2": "answer", "e3": "answer"}
        assert plan.left_out == {}


def test_the_same_exchange_logged_twice_is_learnt_once() -> None:
    once = conversation(2)[1]
    rows, reasons = rows_of([once, exchange("twin", once.messages, once.answer)], "whole")
    assert [row.id for row, _ in rows] == ["e1"]
    assert set(reasons) == {"twin"}


def test_hashes_tell_what_was_said_not_how_a_client_wrote_it() -> None:
    call = called("look", at=1)
    resent = {**call, "content": "", "refusal": None, "tool_calls": [{**call["tool_calls"][0], "id": "renamed"}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert turn_hashes([user("a"), call], TOOLS) == turn_hashes([parts, resent], TOOLS)
    assert turn_hashes([user("a"), call]) != turn_hashes([user("a"), call], TOOLS)
    assert turn_hashes([user("a"), said("b")])[1] != turn_hashes([user("a"), user("b")])[1]
    assert turn_hashes([user("ab"), user("c")])[1] != turn_hashes([user("a"), user("bc")])[1]


def test_an_invalid_or_cut_off_turn_spoils_what_follows_and_not_what_came_before() -> None:
    exchanges = conversation(5)
    calls = exchanges[3].messages[-3]
    calls["tool_calls"][0]["function"]["name"] = "gone"  # the answer to question 2, logged and repeated in the others
    assert exchanges[2].answer is calls
    rows, reasons = rows_of(exchanges, "whole")
    assert {row.id: learn for row, learn in rows} == {
        "e1": "conversation", "e2": "answer", "e3": "answer", "e4": "answer",
    }  # fmt: skip
    assert set(reasons) == {"e0"}
    cut = conversation(3)
    cut[2].response["choices"][0]["finish_reason"] = "length"
    assert {row.id: learn for row, learn in rows_of(cut, "whole")[0]} == {"e1": "conversation", "e2": "answer"}


def test_an_invalid_turn_that_was_never_logged_is_not_learnt_either() -> None:
    wrong = exchange("e", [user("a"), called("gone"), {"role": "tool", "content": "?"}], said("d"))
    assert rows_of([wrong], "whole")[0] == [(wrong, "answer")]
    assert turn_of(wrong, 1).messages == [user("a")]
