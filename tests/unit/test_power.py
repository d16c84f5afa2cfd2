"""Rows that a margin needs: against statsmodels, against simulation, and the refusal below them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.power import normal_power_het

from potstill.intervals import Difference, Resampling, decide, difference_of_rates
from potstill.power import PowerRule, design_effect, power_of, rows_for

SHARES = st.floats(0.02, 0.9)
MARGINS = st.floats(0.005, 0.2)


@given(st.integers(30, 20_000), MARGINS, SHARES)
def test_power_is_that_of_statsmodels(rows: int, margin: float, differing: float) -> None:
    error = differing**0.5
    known = normal_power_het(margin, rows, 0.025, std_null=error, std_alternative=error, alternative="larger")
    assert power_of(rows, margin, differing) == pytest.approx(float(known), abs=1e-9)


@given(st.sampled_from([0.25, 0.5, 0.8, 0.9]), MARGINS, SHARES, st.floats(1, 4))
def test_rows_for_a_power_are_the_fewest_that_have_it(
    power: float, margin: float, differing: float, effect: float
) -> None:
    rows = rows_for(power, margin, differing, effect)
    assert rows is not None
    assert power_of(rows, margin, differing, effect) >= power - 1e-9
    assert rows == 1 or power_of(rows - 1, margin, differing, effect) < power


@given(MARGINS, SHARES)
def test_a_narrower_margin_and_more_disagreement_need_more_rows(margin: float, differing: float) -> None:
    here = rows_for(0.8, margin, differing)
    assert here is not None
    for harder in (rows_for(0.8, margin / 2, differing), rows_for(0.8, margin, min(1.0, differing * 1.1))):
        assert harder is not None
        assert harder >= here
    assert rows_for(0.8, 0.0, differing) is None


def test_planned_rows_find_an_equal_student_as_often_as_planned() -> None:
    rows = rows_for(0.8, 0.05, 0.2)
    assert rows == 628
    generator, passed, ones = np.random.default_rng(1), 0, np.ones(628)
    for _ in range(400):
        gains = generator.choice([-1, 0, 1], p=[0.1, 0.8, 0.1], size=rows)
        found = difference_of_rates("a", (gains > 0) * 1.0, (gains < 0) * 1.0, ones, Resampling())
        passed += decide(found, 0.05, rule=PowerRule()).verdict in ("superior", "non_inferior")
    assert 0.73 <= passed / 400 <= 0.87


def test_conversations_of_one_row_cost_nothing_and_long_ones_do() -> None:
    assert design_effect([1] * 50) == 1.0
    assert design_effect([5] * 50, correlation=0.2) == pytest.approx(1.8)
    assert design_effect([1] * 50 + [20]) > design_effect([1] * 50 + [10])


def test_sixty_rows_conclude_nothing_however_large_the_difference_and_name_the_rows_needed() -> None:
    gains = np.array([1.0] * 18 + [-1.0] * 3 + [0.0] * 39)
    found = difference_of_rates("accuracy", (gains > 0) * 1.0, (gains < 0) * 1.0, np.ones(60), Resampling())
    assert decide(found, 0.02).verdict == "superior"
    planned = decide(found, 0.02, rule=PowerRule())
    assert planned.verdict == "undecided"
    assert planned.rows_needed == rows_for(0.8, 0.02, 21 / 60)
    assert "nothing is concluded below 1,446 rows, and 6,868 would pass it in 80%" in planned.reason
    assert decide(found, 0.02, rule=PowerRule(least=0.0)).verdict == "superior"


def test_refusal_does_not_depend_on_who_wins() -> None:
    for wins, losses in ((20, 0), (10, 10), (0, 20)):
        found = Difference("a", (wins - losses) / 60, -0.9, 0.9, 60, 60, wins, losses, "score", 20 / 60)
        refused = decide(found, 0.02, rule=PowerRule())
        assert (refused.verdict, refused.rows_needed) == ("undecided", rows_for(0.8, 0.02, 20 / 60))


def test_enough_rows_are_judged_as_without_a_plan() -> None:
    gains = np.array([1.0] * 100 + [-1.0] * 90 + [0.0] * 2810)
    found = difference_of_rates("accuracy", (gains > 0) * 1.0, (gains < 0) * 1.0, np.ones(3000), Resampling())
    assert decide(found, 0.02, rule=PowerRule()) == decide(found, 0.02)
    assert decide(found, 0.02).verdict == "non_inferior"
