"""Promises of scores: exact where a grammar leaves a choice, and never made of what the model would not say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.calibration.confidence import LabelScorer, sequence_score
from potstill.records import Json

PIECES = st.sampled_from(["c", "r", "card_", "ref", "END", "_l", "x"])
LABELS = ("card_arrival", "card_lost", "card", "refund", "réclamation")


def token(written: str, **probabilities: float) -> Json:
    """A token with the probabilities of the tokens that were possible there; `written` is one of them."""
    top = [entry(text, p) for text, p in probabilities.items()]
    return entry(written, probabilities[written]) | {"top_logprobs": top}


def entry(text: str, probability: float) -> Json:
    text = "" if text == "END" else text
    return {"token": text, "bytes": list(text.encode()), "logprob": math.log(probability)}


def test_a_choice_is_weighed_against_tokens_that_lead_to_labels_alone() -> None:
    content = [token("refund", refund=0.3, card=0.1, nonsense=0.6)]
    found = LabelScorer(LABELS).probabilities(content)
    assert found is not None
    assert found["refund"] == pytest.approx(0.75)
    assert sum(found.values()) == pytest.approx(1)


def test_what_only_spells_out_a_decided_label_costs_nothing() -> None:
    content = [token("ref", ref=0.9, card=0.1), token("und", und=0.2, use=0.8)]
    found = LabelScorer(LABELS).probabilities(content)
    assert found is not None
    assert found["refund"] == pytest.approx(0.9)


def test_branches_multiply_along_the_way() -> None:
    content = [token("card", card=0.8, refund=0.2), token("_", **{"_": 0.5, "END": 0.5}), token("a", a=0.9, l=0.1)]
    found = LabelScorer(LABELS).probabilities(content)
    assert found is not None
    expected = {"card_arrival": 0.8 * 0.5 * 0.9, "card_lost": 0.8 * 0.5 * 0.1, "card": 0.8 * 0.5, "refund": 0.2}
    assert {label: found[label] for label in expected} == pytest.approx(expected)
    assert next(iter(found)) == "card"


def test_a_label_that_ends_where_others_go_on_is_told_from_them() -> None:
    content = [token("card", card=1.0), {**entry("END", 0.7), "top_logprobs": [entry("END", 0.7), entry("_", 0.3)]}]
    found = LabelScorer(LABELS).probabilities(content)
    assert found is not None
    assert found["card"] == pytest.approx(0.7)


def test_several_spellings_of_one_label_count_together() -> None:
    found = LabelScorer(LABELS).probabilities([token("ref", ref=0.3, refund=0.3, card=0.4)])
    assert found is not None
    assert found["refund"] == pytest.approx(0.6)


def test_half_a_character_is_weighed_by_its_bytes() -> None:
    half = {"token": "r\ufffd", "bytes": [114, 0xC3], "logprob": math.log(0.5)}
    content = [half | {"top_logprobs": [half, entry("refund", 0.5)]}]
    found = LabelScorer(LABELS).probabilities(content)
    assert found is not None
    assert found["réclamation"] == pytest.approx(0.5)


@pytest.mark.parametrize("content", [None, [], "x", [{}], [{"token": "x"}], [{"token": "zzz", "logprob": -1.0}]])
def test_tokens_that_tell_no_label_give_no_probabilities(content: object) -> None:
    assert LabelScorer(LABELS).probabilities(content) is None


@given(st.data())
def test_probabilities_of_all_labels_sum_to_one(data: st.DataObject) -> None:
    label = data.draw(st.sampled_from(LABELS))
    content, left = [], label
    while left:
        cut = data.draw(st.integers(1, len(left)))
        piece, left = left[:cut], left[cut:]
        others = data.draw(
            st.dictionaries(st.sampled_from(["c", "r", "card_", "ref", "END", "_l", "x"]), st.floats(0.01, 1))
        )
        content.append(token(piece, **{piece: 0.5} | {k: v for k, v in others.items() if k != piece}))
    found = LabelScorer(LABELS).probabilities(content)
    assert found is not None
    assert sum(found.values()) == pytest.approx(1)
    assert found.get(label, 0.0) > 0


def test_a_long_answer_is_no_less_sure_for_its_length() -> None:
    content = [entry("a", 0.9)] * 3
    assert sequence_score(content, "mean") == pytest.approx(0.9)
    assert sequence_score(content * 10, "mean") == pytest.approx(0.9)
    assert sequence_score([*content, entry("b", 0.2)], "least") == pytest.approx(0.2)
    assert sequence_score(content, "product") == pytest.approx(0.729)
    assert sequence_score([*content, {"token": "x"}], "mean") is None
    assert sequence_score([], "mean") is None
