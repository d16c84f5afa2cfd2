"""Promises about canned answers: many prompts, long, free text; counted as a person would count them."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distillation.boilerplate import Boilerplate, boilerplate_answers


def canned(rows: list[tuple[int, int, int]], settings: Boilerplate) -> list[bool]:
    columns = np.array(rows, dtype=np.uint64).reshape(-1, 3)
    return boilerplate_answers(columns[:, 0], columns[:, 1], columns[:, 2].astype(np.int64), settings).tolist()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.sampled_from([39, 40, 90])), max_size=40),
    st.integers(2, 5),
    st.sampled_from([0.0, 0.1, 0.4]),
)
def test_an_answer_is_canned_when_enough_different_prompts_got_it(
    rows: list[tuple[int, int, int]], prompts: int, share: float
) -> None:
    rows = [(answer, prompt, length + answer) for answer, prompt, length in rows]
    settings = Boilerplate(least_prompts=prompts, least_share=share)
    got: dict[int, set[int]] = {}
    for answer, prompt, length in rows:
        if length >= 40:
            got.setdefault(answer, set()).add(prompt)
    least = max(prompts, math.ceil(share * len(rows)))
    assert canned(rows, settings) == [length >= 40 and len(got.get(answer, ())) >= least for answer, _, length in rows]


def test_one_question_asked_a_thousand_times_makes_no_boilerplate() -> None:
    assert not any(canned([(7, 1, 100)] * 1000, Boilerplate()))
    assert all(canned([(7, prompt, 100) for prompt in range(1000)], Boilerplate()))


def test_a_large_log_needs_more_than_the_least_count() -> None:
    others = [(answer, answer, 100) for answer in range(100, 50_000)]
    assert not any(canned([(7, prompt, 100) for prompt in range(30)] + others, Boilerplate()))
    found = canned([(7, prompt, 100) for prompt in range(60)] + others, Boilerplate())
    assert sum(found) == 60
    assert all(found[:60])
