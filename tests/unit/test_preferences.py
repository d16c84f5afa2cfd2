"""Preferences: what is chosen is valid and wanted, and nothing that people said is turned round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.opinions import thumb
from distillation.preferences import Preferences, find_preferences
from potstill.dataset import read_opinions, read_preferences, write_preferences
from potstill.errors import SealedSplit
from potstill.preferences import as_dpo_row, as_kto_row
from potstill.prompt import Drop, PromptRule
from potstill.records import Exchange, Feedback
from potstill.tasks import Classification, ToolCalls

TASK = Classification(("card", "cash", "loan"))
SYSTEM = {"role": "system", "content": "Sort the mail."}
RULE = PromptRule((Drop("system", SYSTEM["content"]),))
UP, DOWN = Feedback("thumbs", "", True), Feedback("thumbs", "", "down")


def corrected(to: Any) -> Feedback:
    return Feedback("correction", "label", to)


def asked(name: str, answer: str, *feedback: Feedback, at: int | None = 0, **changes: Any) -> Exchange:
    """An exchange on one and the same request; `at` is the second of its time."""
    values: dict[str, Any] = {"text": "where is my card", "user": "u", "conversation": None, "finish": "stop"} | changes
    choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": values["finish"]}
    return Exchange(
        name,
        {"messages": [SYSTEM, {"role": "user", "content": values["text"]}]},
        {"choices": [choice]},
        time=None if at is None else f"2026-01-05T08:00:{at:02}Z",
        metadata={"user": values["user"], "conversation": values["conversation"]},
        feedback=feedback,
    )


def found(*exchanges: Exchange) -> Preferences:
    return find_preferences(exchanges, TASK, RULE)


def pairs(*exchanges: Exchange) -> list[tuple[str, str, str]]:
    return [(each.source, each.chosen, each.rejected) for each in found(*exchanges).pairs]


def opinions(*exchanges: Exchange) -> list[tuple[str, bool, str]]:
    return [(each.answer, each.desirable, each.source) for each in found(*exchanges).opinions]


def test_a_correction_is_chosen_over_the_teachers_answer() -> None:
    (pair,) = found(asked("a", "Card", corrected("'cash'"))).pairs
    assert (pair.source, pair.chosen, pair.rejected, pair.id) == ("correction", "cash", "card", "correction:a")
    assert pair.messages == [{"role": "user", "content": "where is my card"}]
    assert opinions(asked("a", "card", corrected("cash"))) == [
        ("cash", True, "correction"), ("card", False, "correction"),
    ]  # fmt: skip


def test_a_correction_that_agrees_is_an_opinion_and_no_pair() -> None:
    assert pairs(asked("a", "card", corrected("Card"))) == []
    assert opinions(asked("a", "card", corrected("card"))) == [("card", True, "correction")]


def test_an_invalid_answer_may_be_rejected_and_never_chosen() -> None:
    assert pairs(asked("a", "no idea", corrected("cash"))) == [("correction", "cash", "no idea")]
    assert pairs(asked("a", "card", corrected("no idea"))) == []
    assert pairs(asked("a", "card"), asked("b", "no idea", at=1)) == []
    assert pairs(asked("a", "no idea"), asked("b", "card", at=1)) == [("regenerated", "card", "no idea")]
    assert pairs(asked("a", "card", DOWN), asked("b", "no idea", UP, user="v")) == []
    assert opinions(asked("a", "no idea", UP)) == []
    assert pairs(asked("a", "cash"), asked("b", "card", at=1, finish="length")) == []


def test_the_last_of_regenerated_answers_is_chosen_over_each_other() -> None:
    again = [asked("a", "card"), asked("b", "cash", at=5), asked("c", "card", at=7), asked("d", "loan", at=9)]
    wanted = [("regenerated", "loan", "card"), ("regenerated", "loan", "cash")]
    assert pairs(*again) == pairs(*reversed(again)) == wanted
    assert [each.id for each in found(*again).pairs] == ["regenerated:c:d", "regenerated:b:d"]


@pytest.mark.parametrize(
    "second",
    [
        asked("b", "cash", at=5, user="another"),
        asked("b", "cash", at=5, user=None),
        asked("b", "cash", at=5, text="another question"),
        asked("b", "card", at=5),
        asked("b", "cash", at=0),
        asked("b", "cash", DOWN, at=5),
        asked("b", "cash", corrected("loan"), at=5, text="another"),
    ],
    ids=["another user", "nobody known", "another request", "the same answer", "at once", "disliked", "corrected"],
)
def test_what_is_no_better_second_answer_makes_no_regenerated_pair(second: Exchange) -> None:
    assert not [each for each in pairs(asked("a", "card"), second) if each[0] == "regenerated"]


def test_a_thumb_up_on_the_earlier_answer_contradicts_regeneration() -> None:
    assert pairs(asked("a", "card", UP), asked("b", "cash", at=5)) == []


def test_the_same_conversation_is_the_same_asker_and_log_order_stands_in_for_times() -> None:
    first = asked("a", "card", at=None, user=None, conversation="c")
    second = asked("b", "cash", at=None, user=None, conversation="c")
    assert pairs(first, second) == [("regenerated", "cash", "card")]
    assert pairs(second, first) == [("regenerated", "card", "cash")]


def test_thumbs_up_and_down_on_one_request_pair_up_whoever_gave_them() -> None:
    liked, disliked = asked("a", "card", UP, user="u"), asked("b", "cash", DOWN, user="v")
    assert pairs(liked, disliked) == [("thumbs", "card", "cash")]
    torn = asked("c", "cash", UP, user="w")
    assert pairs(liked, disliked, torn) == []
    assert opinions(liked, disliked) == [("card", True, "thumbs"), ("cash", False, "thumbs")]


def test_a_correction_outweighs_thumbs_and_equals_cancel_out() -> None:
    liked = asked("a", "card", UP, user="u")
    disliked = asked("b", "cash", DOWN, user="v")
    other_way = asked("c", "card", corrected("cash"), user="w")
    assert pairs(liked, disliked, other_way) == [("correction", "cash", "card")]
    assert pairs(other_way, asked("d", "cash", corrected("card"), user="x")) == []
    assert opinions(asked("a", "card", UP, corrected("cash"))) == [
        ("cash", True, "correction"), ("card", False, "correction"),
    ]  # fmt: skip


def test_tool_calls_are_checked_against_the_tools_of_the_request() -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    answer = {"role": "assistant", "content": '<tool_call>{"name":"look","arguments":{}}</tool_call>'}
    for name, count in (("look", 1), ("gone", 0)):
        wanted = {"calls": [{"name": name, "arguments": {"at": 1}}], "content": None}
        request = {"messages": [{"role": "user", "content": "a"}], "tools": tools}
        exchange = Exchange("a", request, {"choices": [{"message": answer}]}, feedback=(corrected(wanted),))
        result = find_preferences([exchange], ToolCalls(), PromptRule())
        assert len(result.pairs) == count
        assert [each.tools for each in result.pairs] == [tools] * count


opinion = st.sampled_from([UP, DOWN, *map(corrected, ("card", "cash", "loan", "nonsense"))])
drawn = st.builds(
    lambda answer, opinions, at, user, text, finish: (answer, opinions, at, user, text, finish),
    st.sampled_from(["card", "cash", "loan", "Loan.", "nonsense", ""]),
    st.lists(opinion, max_size=2),
    st.none() | st.integers(0, 5),
    st.sampled_from([None, "u", "v"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["stop", "length"]),
)


@given(st.lists(drawn, max_size=8))
def test_preferences_are_valid_distinct_and_never_contradict_each_other(rows: list[Any]) -> None:
    exchanges = [
        asked(f"e{number}", answer, *opinions, at=at, user=user, text=text, finish=finish)
        for number, (answer, opinions, at, user, text, finish) in enumerate(rows)
    ]
    result = found(*exchanges)
    stated = {(str(each.messages), each.chosen, each.rejected) for each in result.pairs}
    assert len(stated) == len(result.pairs)
    for each in result.pairs:
        assert TASK.parse(each.chosen).value == each.chosen
        assert each.chosen != each.rejected != ""
        assert (str(each.messages), each.rejected, each.chosen) not in stated
    for one in result.opinions:
        assert not one.desirable or TASK.parse(one.answer).value == one.answer
    assert len({each.id for each in result.opinions}) == len(result.opinions)
    assert len({each.id for each in result.pairs}) == len(result.pairs)


@given(st.lists(drawn, max_size=5), st.lists(drawn, max_size=5))
def test_what_is_found_comes_back_from_the_dataset_split_by_split(
    tmp_path_factory: pytest.TempPathFactory, train: list[Any], validation: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    results = {}
    for split, rows in (("train", train), ("validation", validation)):
        results[split] = found(
            *[asked(f"{split}{n}", a, *o, at=t, user=u) for n, (a, o, t, u, _, _) in enumerate(rows)]
        )
    counts = write_preferences(
        folder,
        {split: each.pairs for split, each in results.items()},  # type: ignore[misc]
        {split: each.opinions for split, each in results.items()},  # type: ignore[misc]
    )
    assert counts["preferences"] == sum(len(each.pairs) for each in results.values())
    for split, each in results.items():
        assert read_preferences(folder, split) == each.pairs  # type: ignore[arg-type]
        assert read_opinions(folder, split) == each.opinions  # type: ignore[arg-type]


def test_test_rows_are_neither_written_nor_read(tmp_path: Path) -> None:
    pairs = found(asked("a", "card", corrected("cash"))).pairs
    with pytest.raises(SealedSplit, match="'test' is sealed"):
        write_preferences(tmp_path, {"test": pairs}, {})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())
    with pytest.raises(SealedSplit):
        read_preferences(tmp_path, "test")  # type: ignore[arg-type]
    assert read_preferences(tmp_path, "train") == []


def test_rows_for_trainers_hold_the_prompt_and_one_answer_each() -> None:
    result = found(asked("a", "card", corrected("cash")))
    prompt = [{"role": "user", "content": "where is my card"}]
    said = {text: [{"role": "assistant", "content": text}] for text in ("card", "cash")}
    assert as_dpo_row(result.pairs[0]) == {"prompt": prompt, "chosen": said["cash"], "rejected": said["card"]}
    assert as_kto_row(result.opinions[1]) == {"prompt": prompt, "completion": said["card"], "label": False}


@pytest.mark.parametrize(
    ("value", "meaning"),
    [(True, True), (False, False), (1, True), (0, False), (-1, False), ("up", True), ("Down", False), ("maybe", None)],
)
def test_thumbs_read_alike_however_a_log_writes_them(value: Any, meaning: bool | None) -> None:
    assert thumb(Feedback("thumbs", "", value)) is meaning
    assert thumb(Feedback("score", "", value)) is None
