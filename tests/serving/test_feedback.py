"""Promises of feedback at a server of several models."""

from __future__ import annotations

from potstill.serving.feedback import FeedbackBody, fault_of
from potstill.tasks.classification import Classification

MOODS, TOPICS = Classification(("glad", "sad")), Classification(("card", "loan"))


def correction(value: object) -> FeedbackBody:
    return FeedbackBody(id="chatcmpl-1", kind="correction", value=value)


def test_a_correction_may_be_an_answer_of_any_model_that_is_served() -> None:
    assert fault_of(correction("sad"), [MOODS, TOPICS]) is None
    assert fault_of(correction("loan"), [MOODS, TOPICS]) is None
    assert fault_of(correction("loan"), [MOODS]) is not None


def test_a_correction_that_no_model_could_answer_is_told_why_of_each() -> None:
    fault = fault_of(correction("furious"), [MOODS, TOPICS])
    assert fault is not None
    assert fault.startswith("not a valid answer of any task that is served: ")
    assert "furious" in fault
