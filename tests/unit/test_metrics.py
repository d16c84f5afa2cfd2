"""Promises of the task metrics: what a library defines equals that library, and intervals hold what they should."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_fscore_support

from evaluation.metrics.classification import abstention_of, calibration_of, classification_details
from evaluation.metrics.extraction import extraction_details
from evaluation.metrics.figures import Scored
from evaluation.metrics.generation import generation_details
from evaluation.metrics.refusals import refusal_in
from evaluation.metrics.tables import Table, tables_of
from evaluation.metrics.tool_calls import tool_calls_details
from potstill.intervals import Resampling
from potstill.records import Json
from potstill.tasks.json_forms import form, loose

HOW = Resampling(resamples=400)
LABELS = ("a", "b", "c", "d")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def shuffled(value: Any, rng: random.Random) -> Any:
    """The same JSON with members in another order and whole numbers written the other way."""
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return {key: shuffled(value[key], rng) for key in keys}
    if isinstance(value, list):
        return [shuffled(each, rng) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


# Equality of JSON


@given(json_values, st.randoms(use_true_random=False))
def test_key_order_and_the_way_a_number_is_written_do_not_count(value: Any, rng: random.Random) -> None:
    assert form(value) == form(shuffled(value, rng)) == form(json.loads(json.dumps(value)))


@given(json_values, json_values)
def test_comparing_arguments_is_symmetric_and_loose_forgives_no_less(first: Any, second: Any) -> None:
    assert (form(first) == form(second)) == (form(second) == form(first))
    if form(first) == form(second):
        assert loose(first) == loose(second)


@pytest.mark.parametrize(
    ("one", "other"), [("1", 1), (True, 1), (None, "null"), ([1, 2], [2, 1]), (0, False), ("", None)]
)
def test_types_and_the_order_of_arrays_do_count(one: Any, other: Any) -> None:
    assert form(one) != form(other)


# Classification


def labelled(pairs: Sequence[tuple[str, str | None]], confidences: Sequence[float] | None = None) -> list[Scored]:
    return [
        Scored(
            f"r{at}",
            f"c{at // 2}",
            given_,
            gold,
            None if given_ else "invalid",
            confidences[at] if confidences else None,
        )
        for at, (gold, given_) in enumerate(pairs)
    ]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=60))
def test_macro_f1_and_the_figures_by_label_equal_sklearns(pairs: list[tuple[str, str | None]]) -> None:
    found = classification_details(labelled(pairs), Resampling(resamples=20))
    gold, given_ = [a for a, _ in pairs], [b or "invalid" for _, b in pairs]
    present = sorted(set(gold))
    assert found["figures"]["macro_f1"]["value"] == pytest.approx(
        f1_score(gold, given_, labels=present, average="macro", zero_division=0)
    )
    precision, recall, f1, support = precision_recall_fscore_support(gold, given_, labels=present, zero_division=0)
    for each in found["labels"]:
        at = present.index(each["label"])
        assert each["support"] == support[at]
        assert each["recall"]["value"] == pytest.approx(recall[at])
        assert each["f1"]["value"] == pytest.approx(f1[at])
        # sklearn writes 0 where nothing was answered with the label; we say that it is not known
        assert (each["precision"] or {"value": 0})["value"] == pytest.approx(precision[at])


def test_the_interval_of_macro_f1_covers() -> None:
    """Of 100 draws a nominal 95 % interval holds the truth in 89 or more with probability above 99 %."""
    rng = np.random.default_rng(5)
    probabilities = {"a": 0.9, "b": 0.7, "c": 0.8}
    confusion = {gold: {**dict.fromkeys("abc", (1 - right) / 2), gold: right} for gold, right in probabilities.items()}
    true = np.mean([
        2 * confusion[each][each] / (1 + sum(confusion[gold][each] for gold in "abc")) for each in "abc"
    ])  # fmt: skip
    held = 0
    for _ in range(100):
        golds = rng.choice(list("abc"), 150)
        pairs = [(str(g), str(rng.choice(list("abc"), p=list(confusion[str(g)].values())))) for g in golds]
        rows = [Scored(f"r{at}", f"r{at}", given_, gold) for at, (gold, given_) in enumerate(pairs)]
        figure = classification_details(rows, HOW)["figures"]["macro_f1"]
        held += figure["low"] <= true <= figure["high"]
    assert held >= 89


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_its_gap() -> None:
    rng = random.Random(1)
    confidences = [rng.random() for _ in range(4000)]
    honest = labelled([("a", "a" if rng.random() < each else "b") for each in confidences], confidences)
    found = calibration_of(honest, HOW)
    assert found is not None
    assert found["ece"]["value"] < 0.04
    assert sum(each["n"] for each in found["bins"]) == found["n"] == 4000
    boastful = labelled([("a", "a" if at % 2 else "b") for at in range(400)], [0.95] * 400)
    bad = calibration_of(boastful, HOW)
    assert bad is not None
    assert bad["ece"]["value"] == pytest.approx(0.45)
    assert bad["brier"]["value"] == pytest.approx(0.5 * 0.05**2 + 0.5 * 0.95**2)
    assert calibration_of(labelled([("a", "a")]), HOW) is None


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=40))
@settings(max_examples=40)
def test_the_risk_at_full_coverage_is_the_error_rate_and_aurc_lies_between_the_extremes(
    draws: list[tuple[bool, float]],
) -> None:
    rows = labelled([("a", "a" if right else "b") for right, _ in draws], [each for _, each in draws])
    found = abstention_of(rows, Resampling(resamples=50))
    assert found is not None
    wrong = sum(not right for right, _ in draws) / len(draws)
    assert found["points"][0]["coverage"] == 1.0
    assert found["points"][0]["risk"]["value"] == pytest.approx(wrong)
    assert found["curve"][-1] == pytest.approx([1.0, wrong])
    order = [1 - at / len(draws) for at in range(len(draws))]
    ranked = sorted(right for right, _ in draws)
    worst, best = (
        abstention_of(labelled([("a", "a" if right else "b") for right in each], order), Resampling(resamples=20))
        for each in (ranked, ranked[::-1])
    )
    assert best is not None
    assert worst is not None
    assert best["aurc"]["value"] - 1e-9 <= found["aurc"]["value"] <= worst["aurc"]["value"] + 1e-9


def test_abstaining_by_a_confidence_that_knows_brings_the_risk_to_nought() -> None:
    rows = labelled([("a", "b" if at < 20 else "a") for at in range(100)], [at / 100 for at in range(100)])
    found = abstention_of(rows, HOW)
    assert found is not None
    by_share = {round(each["coverage"], 2): each["risk"]["value"] for each in found["points"]}
    assert by_share[1.0] == pytest.approx(0.2)
    assert by_share[0.8] == 0.0
    assert found["aurc"]["low"] <= found["aurc"]["value"] <= found["aurc"]["high"] < 0.2


# Extraction


SLOTS = st.dictionaries(st.sampled_from(["people", "time", "date"]), st.integers(0, 2), max_size=3)


@settings(max_examples=50)
@given(st.lists(st.tuples(SLOTS, st.none() | SLOTS), min_size=1, max_size=20))
def test_fields_add_up_and_micro_f1_is_the_score_of_the_task(pairs: list[tuple[Json, Json | None]]) -> None:
    from potstill.tasks.extraction import Extraction

    task = Extraction(
        {"type": "object", "properties": {key: {"type": "integer"} for key in ("people", "time", "date")}}
    )
    rows = [Scored(f"r{at}", f"r{at}", value, gold) for at, (gold, value) in enumerate(pairs)]
    found = extraction_details(rows, Resampling(resamples=20))
    scores = [task.score(value, gold) for gold, value in pairs]
    tp, fp, fn = (sum(each[key] for each in scores) for key in ("tp", "fp", "fn"))
    fields = found["fields"]
    assert sum(each["right"] for each in fields) == tp
    assert sum(each["spurious"] + each["wrong"] for each in fields) == fp
    assert sum(each["missing"] + each["wrong"] for each in fields) == fn
    figure = found["figures"]["slot_f1_micro"]
    assert (figure["value"] if figure else None) == (
        pytest.approx(2 * tp / (2 * tp + fp + fn)) if tp + fp + fn else None
    )
    assert found["figures"]["exact"]["value"] == pytest.approx(sum(each["exact"] for each in scores) / len(rows))


def test_missing_spurious_and_wrong_are_told_apart() -> None:
    rows = [
        Scored("1", "1", {"time": "8", "date": "x"}, {"time": "9", "people": 2}),
        Scored("2", "2", None, {"people": 3}, reason="not JSON: ..."),
        Scored("3", "3", None, {"people": 3}, reason="$.people: 'two' is not of type 'integer'"),
        Scored("4", "4", {"people": 4.0}, {"people": 4}),
    ]
    found = extraction_details(rows, HOW)
    by_name = {each["field"]: each for each in found["fields"]}
    assert {key: by_name["people"][key] for key in ("gold", "right", "missing", "spurious", "wrong")} == {
        "gold": 4, "right": 1, "missing": 3, "spurious": 0, "wrong": 0,
    }  # fmt: skip
    assert by_name["time"]["wrong"] == by_name["date"]["spurious"] == 1
    assert by_name["time"]["recall"]["value"] == by_name["time"]["precision"]["value"] == 0.0
    assert by_name["date"]["recall"] is None
    assert found["figures"]["valid_json"]["value"] == 0.75
    assert found["figures"]["schema_valid"]["value"] == 0.5


# Tool calls


def calls(*made: tuple[str, Json]) -> Json:
    return {"calls": [{"name": name, "arguments": arguments} for name, arguments in made], "content": None}


def test_the_parts_of_a_call_are_told_apart_and_a_conversation_is_right_when_all_its_turns_are() -> None:
    rows = [
        Scored("1", "c1", calls(("book", {"n": 1.0, "at": "8"})), calls(("book", {"at": "8", "n": 1}))),
        Scored("2", "c1", calls(), calls()),
        Scored("3", "c2", calls(("book", {"n": "1", "at": "8"})), calls(("book", {"at": "8", "n": 1}))),
        Scored("4", "c3", calls(("find", {})), calls()),
        Scored("5", "c4", None, calls(("find", {}))),
        Scored("6", "c5", calls(("a", {"x": 2}), ("a", {"x": 1})), calls(("a", {"x": 1}), ("a", {"x": 2}))),
    ]
    figures = {name: each["value"] for name, each in tool_calls_details(rows, HOW)["figures"].items()}
    assert figures["exact"] == pytest.approx(3 / 6)
    assert figures["call_or_not"] == pytest.approx(4 / 6)
    assert figures["calls_when_it_should"] == pytest.approx(3 / 4)
    assert figures["keeps_quiet_when_it_should"] == pytest.approx(1 / 2)
    assert figures["function"] == pytest.approx(4 / 5)
    assert figures["arguments"] == pytest.approx(3 / 5)
    assert figures["wrong_by_type_alone"] == pytest.approx(1 / 5)
    assert figures["argument_precision"] == pytest.approx(5 / 6)
    assert figures["argument_recall"] == pytest.approx(5 / 6)
    assert figures["whole_conversation"] == pytest.approx(2 / 5)


def test_functions_are_listed_with_the_calls_that_should_not_have_been() -> None:
    rows = [
        Scored("1", "1", calls(("find", {}), ("book", {"n": 2})), calls(("book", {"n": 1}))),
        Scored("2", "2", calls(("book", {"n": 1})), calls(("book", {"n": 1}))),
    ]
    found = {each["function"]: each for each in tool_calls_details(rows, HOW)["functions"]}
    assert (found["find"]["gold"], found["find"]["called"], found["find"]["name"]) == (0, 1, None)
    assert (found["book"]["gold"], found["book"]["name_right"], found["book"]["arguments_right"]) == (2, 2, 1)


# Generation


SENTENCES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "dog"]), min_size=0, max_size=9).map(" ".join),
        st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "dog"]), min_size=1, max_size=9).map(" ".join),
    ),
    min_size=1,
    max_size=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(SENTENCES)
def test_bleu_of_summed_counts_is_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    rows = [Scored(f"r{at}", f"r{at}", found, wanted, text=found) for at, (found, wanted) in enumerate(pairs)]
    figures = generation_details(rows, Resampling(resamples=20))["figures"]
    answers, references = [a for a, _ in pairs], [[b for _, b in pairs]]
    assert figures["bleu"]["value"] == pytest.approx(BLEU().corpus_score(answers, references).score, abs=1e-6)
    each = [CHRF().sentence_score(found, [wanted]).score for found, wanted in pairs]
    assert figures["chrf"]["value"] == pytest.approx(sum(each) / len(each))


def test_length_ratio_is_of_words_and_rouge_knows_other_scripts() -> None:
    rows = [
        Scored("1", "1", "größer als gestern", "größer als heute", text="größer als gestern"),
        Scored("2", "2", "да нет", "да", text="да нет"),
    ]
    figures = generation_details(rows, HOW)["figures"]
    assert figures["length_ratio"]["value"] == pytest.approx(5 / 4)
    assert figures["rouge_l"]["value"] == pytest.approx((2 / 3 + 2 / 3) / 2)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.", "I cannot provide medical advice.",
        "As an AI language model, I have no",
        "I’m unable to assist with this request.", "Sorry, I won't do that.", "I must decline.",
        "That goes against our content policy.", "I am not able to access your account.",
    ],
)  # fmt: skip
def test_refusals_are_found(text: str) -> None:
    assert refusal_in(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "I can't recommend it highly enough.", "Sorry for the delay, here is your order.",
        "You cannot return it after 30 days.",
        "The policy covers refunds.", "We were unable to find the parcel; a new one is on its way.", "",
    ],
)  # fmt: skip
def test_what_only_sounds_like_a_refusal_is_none(text: str) -> None:
    assert refusal_in(text) is None


# Tables


def test_tables_hold_text_alone_and_markdown_keeps_its_columns() -> None:
    rows = labelled([("a|b", "a|b"), ("c", "a|b"), ("c", None)], [0.9, 0.8, 0.7])
    details = {
        "kind": "classification", "reference": "gold", "notes": ["Note."],
        "candidates": {"student": {"n": 3, "clusters": 2, **classification_details(rows, HOW)}},
    }  # fmt: skip
    tables = tables_of(json.loads(json.dumps(details, allow_nan=False)))
    assert [each.title for each in tables] == [
        "Metrics of the task",
        "Abstaining",
        "By label: student",
        "Calibration: student",
    ]
    for table in tables:
        assert all(len(row) == len(table.columns) and all(isinstance(cell, str) for cell in row) for row in table.rows)
        lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert tables_of({}) == []


def test_a_table_in_markdown_escapes_pipes_and_line_ends() -> None:
    assert "| a\\|b c | 1 |" in Table("T", ("x", "y"), (("a|b\nc", "1"),), "why").markdown()
