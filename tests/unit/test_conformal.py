"""Promises of the thresholds: the risk stays below its bound over many draws, whatever the scores are worth."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from potstill.calibration import conformal, reliability
from potstill.calibration.conformal import Bound, kept, threshold
from potstill.errors import RecipeError

Array = NDArray[np.float64]
ROWS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=60
)  # fmt: skip


def drawn(random: np.random.Generator, n: int, sharpness: float, ties: int) -> tuple[Array, Array]:
    """Rows whose scores tell right from wrong more or less, rounded so that some are equal."""
    scores = np.round(random.beta(4, 1, n), ties)
    wrong = random.random(n) < (1 - scores) ** sharpness
    return scores, wrong.astype(float)


@pytest.mark.parametrize(("sharpness", "ties"), [(0.5, 6), (1.0, 6), (3.0, 6), (1.0, 1)])
@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.15])
@pytest.mark.parametrize("n", [30, 200])
def test_the_expected_risk_of_all_stays_below_alpha(alpha: float, n: int, sharpness: float, ties: int) -> None:
    random = np.random.default_rng(0)
    population = drawn(random, 50_000, sharpness, ties)
    risks = []
    for _ in range(200):
        above = threshold(*drawn(random, n, sharpness, ties), Bound(alpha))
        risks.append(kept(*population, above).of_all)
    assert np.mean(risks) <= alpha + 3 * np.std(risks) / math.sqrt(len(risks))


@pytest.mark.parametrize("of", ["all", "kept"])
@pytest.mark.parametrize(("sharpness", "ties"), [(0.5, 6), (1.0, 6), (3.0, 6), (1.0, 1)])
def test_the_risk_is_above_alpha_in_at_most_delta_of_the_draws(of: conformal.Of, sharpness: float, ties: int) -> None:
    random, alpha, delta = np.random.default_rng(1), 0.1, 0.1
    population = drawn(random, 50_000, sharpness, ties)
    broken = 0
    for _ in range(200):
        found = kept(*population, threshold(*drawn(random, 200, sharpness, ties), Bound(alpha, delta, of)))
        broken += (found.of_kept if of == "kept" else found.of_all) > alpha
    assert broken / 200 <= delta + 3 * math.sqrt(delta * (1 - delta) / 200)


def test_a_promise_is_not_bought_by_keeping_nothing() -> None:
    random = np.random.default_rng(2)
    for bound in (Bound(0.1), Bound(0.1, 0.1), Bound(0.1, 0.1, "kept")):
        scores, losses = drawn(random, 500, 3.0, 6)
        assert kept(scores, losses, threshold(scores, losses, bound)).share > 0.6


def test_losses_between_0_and_1_are_bounded_too() -> None:
    random = np.random.default_rng(3)
    broken = 0
    for _ in range(200):
        scores = random.random(150)
        losses = np.clip(1 - scores + random.normal(0, 0.1, 150), 0, 1)
        above = threshold(scores, losses, Bound(0.1, 0.1))
        fresh = random.random(20_000)
        risk = (np.clip(1 - fresh + random.normal(0, 0.1, 20_000), 0, 1) * (fresh > above)).mean()
        broken += risk > 0.1
    assert broken / 200 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 200)


@settings(deadline=None)
@given(ROWS, st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_a_laxer_bound_keeps_no_less(rows: list[tuple[float, float]], one: float, other: float) -> None:
    scores, losses = [score for score, _ in rows], [loss for _, loss in rows]
    low, high = sorted((one, other))
    assert threshold(scores, losses, Bound(low)) >= threshold(scores, losses, Bound(high))
    assert threshold(scores, losses, Bound(low, 0.1)) >= threshold(scores, losses, Bound(low))


@settings(deadline=None)
@given(ROWS, st.floats(0.01, 0.5))
def test_the_corrected_risk_of_the_kept_rows_is_within_alpha(rows: list[tuple[float, float]], alpha: float) -> None:
    scores, losses = [score for score, _ in rows], [loss for _, loss in rows]
    above = threshold(scores, losses, Bound(alpha))
    if above < math.inf:
        lost = sum(loss for score, loss in rows if score > above)
        assert (lost + 1) / (len(rows) + 1) <= alpha + 1e-12


def test_too_few_rows_promise_nothing() -> None:
    assert threshold([0.9] * 10, [0.0] * 10, Bound(0.05)) == math.inf
    assert threshold([0.9] * 10, [0.0] * 10, Bound(0.05, 0.1)) == math.inf
    assert threshold([0.9] * 10, [0.0] * 10, Bound(0.05, 0.1, "kept")) == math.inf
    assert threshold([0.9] * 100, [0.0] * 100, Bound(0.05)) == -math.inf


def test_a_mean_bound_on_kept_answers_is_refused() -> None:
    with pytest.raises(RecipeError, match="can only be bounded with a delta"):
        Bound(0.1, of="kept")


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=80))
def test_calibrated_probabilities_never_turn_the_order_of_scores(rows: list[tuple[float, float]]) -> None:
    found = reliability.fit([score for score, _ in rows], [loss for _, loss in rows])
    probabilities = [found.probability(at / 50) for at in range(51)]
    assert all(low <= high + 1e-9 for low, high in pairwise(probabilities))
    assert all(-1e-9 <= each <= 1 + 1e-9 for each in probabilities)


def test_calibration_recovers_what_scores_are_worth() -> None:
    random = np.random.default_rng(4)
    scores = random.random(5000)
    losses = (random.random(5000) > scores**3).astype(float)
    found = reliability.fit(scores.tolist(), losses.tolist())
    for at in (0.3, 0.6, 0.9):
        assert found.probability(at) == pytest.approx(at**3, abs=0.08)
    calibrated = reliability.brier([found.probability(each) for each in scores], losses.tolist())
    assert calibrated < reliability.brier(scores.tolist(), losses.tolist()) - 0.05
