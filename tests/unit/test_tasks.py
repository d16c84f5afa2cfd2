"""Promises of the task kinds: one meaning of a valid answer, whoever asks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from potstill.errors import RecipeError
from potstill.records import Json
from potstill.tasks import KINDS, Task, task_from
from potstill.tasks.classification import Classification
from potstill.tasks.extraction import Extraction
from potstill.tasks.generation import Generation
from potstill.tasks.tool_calls import ToolCalls

BOOKING: Json = {
    "type": "object",
    "properties": {
        "people": {"type": "integer"},
        "time": {"type": "string"},
        "date": {"type": ["string", "null"]},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["time"],
    "additionalProperties": False,
}
WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
label_texts = words.filter(lambda text: bool(text.strip()) and text == text.strip())
label_sets = st.lists(label_texts, min_size=2, max_size=6, unique=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
bookings = st.fixed_dictionaries(
    {"time": words},
    optional={"people": st.integers(), "date": st.none() | words, "notes": st.lists(words, max_size=3)},
)
calls = st.lists(
    st.fixed_dictionaries({"name": words, "arguments": st.dictionaries(words, json_values, max_size=4)}), max_size=3
)


def classification(*labels: str) -> Classification:
    return Classification(labels)


def call(name: str, arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


# Every kind


@given(label_sets, st.data())
def test_every_label_reads_back_as_itself(labels: list[str], data: st.DataObject) -> None:
    task = Classification(tuple(labels))
    label = data.draw(st.sampled_from(labels))
    assert task.parse(task.canonical(label)).value == label
    assert task.message_of(label) == {"role": "assistant", "content": label}
    assert task.text_of(task.message_of(label)) == label


@given(bookings)
def test_every_object_reads_back_as_itself(value: Json) -> None:
    task = Extraction(BOOKING)
    parsed = task.parse(task.canonical(value))
    assert parsed.reason is None
    assert parsed.value == value
    assert task.from_gold(value).value == task.from_gold(task.canonical(value)).value == value
    assert task.text_of(task.message_of(json.dumps(value))) == task.canonical(value)


@given(st.dictionaries(words, json_values, max_size=5))
def test_every_json_object_reads_back_under_an_open_schema(value: Json) -> None:
    task = Extraction({"type": "object", "properties": {}})
    assert task.parse(task.canonical(value)).value == value


@given(words)
def test_every_answer_in_words_reads_back_as_itself(text: str) -> None:
    task = Generation()
    parsed = task.parse(text)
    assert parsed.valid == bool(text.strip())
    if parsed.valid:
        assert task.parse(task.canonical(parsed.value)).value == parsed.value == text.strip()


@given(calls, words)
def test_every_turn_of_calls_and_words_reads_back_as_itself(made: list[Json], said: str) -> None:
    said = said.strip()
    assume((made or said) and not any("tool_call>" in json.dumps(each, ensure_ascii=False) for each in [*made, said]))
    value = {"calls": made, "content": said or None}
    task = ToolCalls()
    assert task.parse(task.canonical(value)).value == value
    assert task.from_gold(value).value == value
    message = task.message_of(task.canonical(value))
    assert task.parse(task.text_of(message)).value == value
    assert task.text_of(message) == task.canonical(value)
    assert task.from_gold(message).value == value


TASKS: list[Task] = [classification("yes", "no"), Extraction(BOOKING), ToolCalls(), Generation()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_description_makes_the_same_task_again(task: Task) -> None:
    described = json.loads(json.dumps(task.describe()))
    again = task_from(described)
    assert again.describe() == described
    assert type(again) is type(task)
    assert again.metrics == task.metrics
    assert again.constraint() == task.constraint()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
@given(text=words | st.sampled_from(["", "{", "<tool_call>", "<tool_call>{}</tool_call>", "null", "[]", "```"]))
def test_any_text_is_read_or_refused_with_a_reason_and_still_becomes_a_message(task: Task, text: str) -> None:
    parsed = task.parse(text)
    assert parsed.valid or parsed.reason
    message = task.message_of(text)
    assert message["role"] == "assistant"
    if not parsed.valid:
        assert message == {"role": "assistant", "content": text}


def test_kinds_are_the_kinds_that_can_be_made() -> None:
    assert {task.kind for task in TASKS} == set(KINDS)
    with pytest.raises(RecipeError, match="expected one of classification"):
        task_from({"kind": "regression"})


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_message_without_text_has_empty_text(task: Task) -> None:
    assert task.text_of({"role": "assistant", "content": None}) == ""
    assert not task.parse("").valid


# Classification


@pytest.mark.parametrize("text", ["Refund", '"refund"', " refund.\n", "**REFUND**", "`Refund`", "'refund'."])
def test_quotes_emphasis_full_stop_and_case_are_forgiven(text: str) -> None:
    assert classification("Refund", "card lost").parse(text).value == "Refund"


def test_case_is_not_forgiven_where_two_labels_differ_by_it_alone() -> None:
    task = classification("May", "may", "June")
    assert task.parse("May").value == "May"
    assert task.parse("may").value == "may"
    assert not task.parse("MAY").valid
    assert task.parse("JUNE").value == "June"


def test_quotes_are_not_forgiven_where_two_labels_differ_by_them_alone() -> None:
    task = classification("end.", "end", "other")
    assert task.parse("end.").value == "end."
    assert task.parse("end").value == "end"
    assert not task.parse('"end"').valid


@given(label_sets, words)
def test_an_answer_is_a_label_or_refused(labels: list[str], text: str) -> None:
    parsed = Classification(tuple(labels)).parse(text)
    assert (parsed.value in labels) if parsed.valid else ("not one of" in str(parsed.reason))


@pytest.mark.parametrize("text", ["refund please", "ref", "refund, card lost", "", "none"])
def test_what_only_contains_a_label_is_refused(text: str) -> None:
    assert not classification("refund", "card lost").parse(text).valid


@pytest.mark.parametrize("labels", [("one",), (), ("a", "a"), ("a", ""), ("a", " b")])
def test_label_sets_that_cannot_be_told_apart_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match=r"task\.labels"):
        Classification(labels)


def test_gold_label_must_be_text() -> None:
    assert not classification("1", "2").from_gold(1).valid


def test_invalid_answer_scores_nothing_and_label_scores_one() -> None:
    task = classification("a", "b")
    assert [task.score(value, "a")["correct"] for value in ("a", "b", None)] == [1.0, 0.0, 0.0]


# Extraction


def test_object_in_a_code_fence_is_read() -> None:
    assert Extraction(BOOKING).parse('```json\n{"time": "8 pm"}\n```').value == {"time": "8 pm"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"people": 2}', "'time' is a required property"),
        ('{"time": "8", "people": "two"}', "$.people: 'two' is not of type 'integer'"),
        ('{"time": "8", "wine": 1}', "'wine' was unexpected"),
        ('{"time": "8"', "not JSON"),
        ("[]", "is not of type 'object'"),
        ("eight o'clock", "not JSON"),
    ],
)
def test_object_outside_its_schema_is_refused_with_the_reason(text: str, reason: str) -> None:
    assert reason in str(Extraction(BOOKING).parse(text).reason)


def test_canonical_object_has_the_order_of_the_schema() -> None:
    task = Extraction(BOOKING)
    assert task.canonical({"notes": [], "time": "8", "people": 2}) == '{"people":2,"time":"8","notes":[]}'


@given(bookings, bookings)
def test_slot_counts_add_up_and_exact_means_equal(value: Json, gold: Json) -> None:
    counts = Extraction(BOOKING).score(value, gold)
    assert counts["tp"] + counts["fp"] == len(value)
    assert counts["tp"] + counts["fn"] == len(gold)
    assert counts["tp"] == sum(1 for key in value.keys() & gold.keys() if value[key] == gold[key])
    assert (counts["exact"] == 1.0) == (value == gold)


@given(bookings)
def test_invalid_object_misses_every_gold_slot_and_is_not_exact(gold: Json) -> None:
    counts = Extraction(BOOKING).score(None, gold)
    assert counts == {"tp": 0.0, "fp": 0.0, "fn": float(len(gold)), "exact": 0.0}
    assert Extraction(BOOKING).score(None, {})["exact"] == 0.0


@pytest.mark.parametrize(
    "schema", [{"type": "array"}, {"type": "object"}, {"type": "object", "properties": {"a": {"type": "thing"}}}]
)
def test_schema_that_holds_no_slots_is_refused(schema: Json) -> None:
    with pytest.raises(RecipeError, match=r"task\.schema"):
        Extraction(schema)


# Tool calls


def exact(value: Any, gold: Any) -> float:
    task = ToolCalls()
    read, wanted = task.from_gold(value), task.from_gold(gold)
    assert wanted.valid
    return task.score(read.value, wanted.value)["exact"]


def test_order_of_arguments_and_form_of_equal_numbers_are_forgiven() -> None:
    gold = call("book", {"days": 1, "city": "Bonn", "deep": {"a": [2.0, 3]}})
    assert exact(call("book", {"city": "Bonn", "deep": {"a": [2, 3.0]}, "days": 1.0}), gold) == 1.0
    assert exact(call("book", {"city": "Bonn", "deep": {"a": [3, 2]}, "days": 1}), gold) == 0.0
    assert exact(call("book", {"city": "Bonn", "deep": {"a": [2, 3]}, "days": True}), gold) == 0.0
    assert exact(call("book", {"city": "Bonn", "deep": {"a": [2, 3]}, "days": "1"}), gold) == 0.0
    assert exact(call("book", {"city": "Bonn", "deep": {"a": [2, 3]}, "days": 1.5}), gold) == 0.0


def test_order_of_parallel_calls_does_not_count_but_their_number_does() -> None:
    one, two = call("a", {}), call("b", {"x": 1})
    assert exact(f"{one}\n{two}", f"{two}\n{one}") == 1.0
    assert exact(one, f"{two}\n{one}") == 0.0
    assert exact(f"{one}\n{one}", one) == 0.0


def test_words_are_not_compared_but_calling_or_not_is() -> None:
    task = ToolCalls()
    assert exact("Certainly!", "Sure.") == 1.0
    assert exact("Certainly!", call("a", {})) == 0.0
    assert exact(f"One moment. {call('a', {})}", call("a", {})) == 1.0
    assert task.score(None, {"calls": [], "content": "Sure."}) == {
        "exact": 0.0, "decision": 0.0, "function": 0.0, "arguments": 0.0, "gold_calls": 0.0,
    }  # fmt: skip


def test_right_function_with_wrong_arguments_counts_as_function_only() -> None:
    task = ToolCalls()
    scores = task.score(
        task.parse(call("a", {"x": 1})).value, task.parse(call("a", {"x": 2}) + call("a", {"x": 3})).value
    )
    assert scores == {"exact": 0.0, "decision": 1.0, "function": 1.0, "arguments": 0.0, "gold_calls": 2.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (call("forecast", {"city": "Bonn"}), "unknown function 'forecast'; offered were weather"),
        (call("weather", {}), "arguments of weather: $: 'city' is a required property"),
        (call("weather", {"city": 1}), "arguments of weather: $.city: 1 is not of type 'string'"),
        (call("weather", {"city": "Bonn", "days": 0}), "arguments of weather: $.days: 0 is less than the minimum"),
        (call("weather", {"city": "Bonn", "wind": 1}), "'wind' was unexpected"),
        (call("weather", "Bonn"), "arguments of weather: expected an object"),
        ("<tool_call>weather</tool_call>", "tool call is not JSON"),
        ('<tool_call>{"arguments": {}}</tool_call>', "tool call has no name"),
        ('<tool_call>{"name": "weather"', "a tool call is not closed"),
        ("", "empty: neither a tool call nor words"),
    ],
)
def test_call_that_may_not_be_made_is_refused_with_the_reason(text: str, reason: str) -> None:
    assert reason in str(ToolCalls().parse(text, [WEATHER]).reason)


def test_call_within_the_offered_schema_is_valid() -> None:
    parsed = ToolCalls().parse(call("weather", {"city": "Bonn", "days": 2}), [WEATHER])
    assert parsed.value == {"calls": [{"name": "weather", "arguments": {"city": "Bonn", "days": 2}}], "content": None}


def test_message_of_a_service_becomes_one_text_and_comes_back() -> None:
    task = ToolCalls()
    message = {
        "role": "assistant",
        "content": "One moment.",
        "tool_calls": [
            {"id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
        ],
    }
    text = task.text_of(message)
    assert text == 'One moment.\n<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
    back = task.message_of(text)
    assert back["content"] == "One moment."
    assert [each["function"] for each in back["tool_calls"]] == [each["function"] for each in message["tool_calls"]]  # type: ignore[index]


def test_arguments_that_are_no_json_are_refused_not_lost() -> None:
    task = ToolCalls()
    text = task.text_of({"tool_calls": [{"function": {"name": "weather", "arguments": "{city:"}}]})
    assert task.parse(text).reason == "arguments of weather: expected an object"


def test_parallel_calls_get_different_ids_and_the_same_text_the_same_ids() -> None:
    task = ToolCalls()
    text = call("a", {}) + call("a", {})
    ids = [each["id"] for each in task.message_of(text)["tool_calls"]]
    assert len(set(ids)) == 2
    assert ids == [each["id"] for each in task.message_of(text)["tool_calls"]]


# Generation


def test_token_f1_is_the_harmonic_mean_over_words_without_case() -> None:
    task = Generation()
    assert task.score("The cat sat", "the cat") == {"token_f1": 0.8, "exact": 0.0}
    assert task.score("the cat", "the cat") == {"token_f1": 1.0, "exact": 1.0}
    assert task.score(None, "the cat") == {"token_f1": 0.0, "exact": 0.0}


@given(words, words)
def test_token_f1_is_symmetric_and_between_nought_and_one(a: str, b: str) -> None:
    task = Generation()
    assert task.score(a, b)["token_f1"] == task.score(b, a)["token_f1"]
    assert 0.0 <= task.score(a, b)["token_f1"] <= 1.0


@given(bookings)
def test_schema_constraint_allows_what_is_canonical(value: Json) -> None:
    constraint = Extraction(BOOKING).constraint()
    assert constraint is not None
    assert constraint.kind == "json_schema"
    assert not list(Draft202012Validator(constraint.schema).iter_errors(value))
