"""Promises against poisoning: caps hold and do not depend on order; who shifts labels is named, who does not is not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from distillation.poisoning import Poisoning, cap_reasons, label_shifts

owners = st.sampled_from(["ann", "bob", "cy", "", None])
rows_of_owners = st.lists(st.tuples(owners, owners, st.booleans()), min_size=1, max_size=60)


@given(rows_of_owners, st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.randoms(use_true_random=False))
def test_no_one_is_over_a_cap_the_unknown_are_not_capped_and_order_does_not_matter(
    rows: list[tuple[str | None, str | None, bool]], per_user: int, per_key: int, corrections: int, rnd: object
) -> None:
    settings = Poisoning(max_rows_per_user=per_user, max_rows_per_key=per_key, max_corrections_per_key=corrections)

    def kept(order: list[int]) -> set[int]:
        reasons = cap_reasons(
            [f"id {at}" for at in order],
            [rows[at][0] for at in order],
            [rows[at][1] for at in order],
            [rows[at][2] for at in order],
            settings,
        )
        return {at for at, reason in zip(order, reasons, strict=True) if reason is None}

    order = list(range(len(rows)))
    stay = kept(order)
    mixed = order.copy()
    rnd.shuffle(mixed)  # type: ignore[attr-defined]
    assert kept(mixed) == stay
    assert all(count <= per_user for user, count in Counter(rows[at][0] for at in stay).items() if user)
    assert all(count <= per_key for key, count in Counter(rows[at][1] for at in stay).items() if key)
    assert all(n <= corrections for key, n in Counter(rows[at][1] for at in stay if rows[at][2]).items() if key)
    assert {at for at, (user, key, _) in enumerate(rows) if not user and not key} <= stay


def test_a_share_is_of_all_rows_and_leaves_at_least_one() -> None:
    ids, users = [str(at) for at in range(100)], ["big"] * 90 + [f"small {at}" for at in range(10)]
    reasons = cap_reasons(ids, users, [None] * 100, [False] * 100, Poisoning(max_share_per_user=0.2))
    assert Counter(reasons) == {None: 30, "over the cap: more than 20 rows of one user": 70}
    few = cap_reasons(ids[:3], ["big"] * 3, [None] * 3, [False] * 3, Poisoning(max_share_per_user=0.2))
    assert few.count(None) == 1


def test_nothing_is_capped_by_default() -> None:
    assert cap_reasons(["a", "b"], ["u", "u"], ["k", "k"], [True, True], Poisoning()) == [None, None]


def log(rows: int = 6000, seed: int = 0) -> dict[str, list[str | None]]:
    """Ten keys alike: six labels, one row in ten reviewed, a fifth of those corrected to some other label."""
    rng = np.random.default_rng(seed)
    answers = [f"label {at}" for at in rng.integers(0, 6, rows)]
    corrections: list[str | None] = [None] * rows
    for row in np.flatnonzero(rng.random(rows) < 0.1).tolist():
        corrections[row] = f"label {rng.integers(0, 6)}" if rng.random() < 0.2 else answers[row]
    keys = [f"key {at}" for at in rng.integers(0, 10, rows)]
    return {"answers": list(answers), "corrections": corrections, "keys": list(keys)}


@pytest.mark.parametrize("seed", range(5))
def test_a_log_where_all_sources_are_alike_gives_no_finding(seed: int) -> None:
    made = log(seed=seed)
    assert label_shifts({"key": made["keys"]}, made["answers"], made["corrections"], Poisoning()).findings == []


def test_a_key_that_turns_one_label_into_another_is_named_with_its_rows() -> None:
    made = log()
    poisoned = [
        row
        for row, (key, answer) in enumerate(zip(made["keys"], made["answers"], strict=True))
        if (key, answer) == ("key 3", "label 1") and row % 2
    ]
    for row in poisoned:
        made["corrections"][row] = "label 4"
    shifts = label_shifts({"key": made["keys"]}, made["answers"], made["corrections"], Poisoning())
    assert len(shifts.findings) == 1
    found = shifts.findings[0]
    assert (found["source"], found["value"], found["what"]) == ("key", "key 3", "corrections")
    assert (found["from"], found["label"]) == ("label 1", "label 4")
    assert found["count"] == len(shifts.rows[0])
    assert set(poisoned) <= set(shifts.rows[0])
    assert found["p"] < 1e-6
    reasons = shifts.reasons(len(made["keys"]))
    assert {row for row, reason in enumerate(reasons) if reason} == set(shifts.rows[0])
    assert reasons[poisoned[0]] == "label shift: key key 3, corrections label 1 -> label 4"


def test_a_day_on_which_one_label_floods_the_log_is_named() -> None:
    made = log()
    days = [f"day {row // 300}" for row in range(6000)]
    for row in range(900, 1200, 2):
        made["answers"][row] = "label 2"
    findings = label_shifts({"day": days}, made["answers"], [None] * 6000, Poisoning()).findings
    assert [(each["value"], each["what"], each["label"]) for each in findings] == [("day 3", "answers", "label 2")]


def test_reviewers_are_compared_with_reviewers() -> None:
    made = log()
    rng = np.random.default_rng(1)
    corrections = [
        (answer if rng.random() < 0.8 else "label 0") if key in ("key 1", "key 2") and rng.random() < 0.5 else None
        for key, answer in zip(made["keys"], made["answers"], strict=True)
    ]
    assert label_shifts({"key": made["keys"]}, made["answers"], corrections, Poisoning()).findings == []


def test_a_source_alone_of_its_kind_is_not_judged() -> None:
    made = log()
    assert label_shifts({"key": ["only"] * 6000}, made["answers"], made["corrections"], Poisoning()).findings == []
    assert label_shifts({"key": [None] * 6000}, made["answers"], made["corrections"], Poisoning()).findings == []
    assert label_shifts({}, [], [], Poisoning()).findings == []


def test_the_p_value_is_fishers_times_the_comparisons() -> None:
    keys = ["a"] * 40 + ["b"] * 60
    answers = ["x"] * 30 + ["y"] * 10 + ["x"] * 6 + ["y"] * 54
    found = label_shifts({"key": keys}, answers, [None] * 100, Poisoning(alpha=0.01)).findings
    a_x = next(each for each in found if each["value"] == "a")
    assert (a_x["count"], a_x["of"], a_x["count_elsewhere"], a_x["of_elsewhere"]) == (30, 40, 6, 60)
    assert a_x["comparisons"] == 4
    expected = fisher_exact([[30, 10], [6, 54]], alternative="greater").pvalue * 4
    assert a_x["p"] == pytest.approx(expected, rel=1e-9)
    assert a_x["ratio"] == pytest.approx(7.5)
