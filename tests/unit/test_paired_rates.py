"""Tango's interval of paired rates and its p values: published figures, libraries, symmetry, clusters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, norm
from statsmodels.stats.contingency_tables import mcnemar

from evaluation.slices import holm
from potstill.intervals import Resampling, difference_of_rates, p_worse, paired_difference
from potstill.paired_rates import PairedCounts, p_less, paired_counts, score_interval
from potstill.tasks.base import Metric

ACCURACY = Metric("accuracy", {"correct": 1.0})
HOW = Resampling()
COUNTS = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 300)).map(
    lambda found: PairedCounts(found[0], found[1], found[0] + found[1] + found[2])
)


def likelihood_score(wins: int, losses: int, rows: int, difference: float) -> float:
    """The score statistic with its nuisance found by search on the multinomial likelihood, not in closed form."""

    def loss(other: float) -> float:
        cells = ((wins, other + difference), (losses, other), (rows - wins - losses, 1 - 2 * other - difference))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    least, most = max(0.0, -difference), (1 - difference) / 2
    other = minimize_scalar(loss, bounds=(least, most), method="bounded", options={"xatol": 1e-12}).x
    return (wins - losses - rows * difference) / math.sqrt(rows * (2 * other + difference - difference**2))


def test_interval_is_the_published_one_of_the_airway_data() -> None:
    # Fagerland, Lydersen & Laake 2014 (Statistics in Medicine 33:2850), table III: Tango (-0.517, -0.026).
    low, high = score_interval(PairedCounts(1, 7, 21), 0.05)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(("wins", "losses", "rows"), [(3, 9, 60), (12, 4, 100), (1, 1, 30), (20, 31, 400)])
def test_ends_are_where_the_score_test_turns(wins: int, losses: int, rows: int) -> None:
    low, high = score_interval(PairedCounts(wins, losses, rows), 0.05)
    z = norm.ppf(0.975)
    assert likelihood_score(wins, losses, rows, low) == pytest.approx(z, abs=1e-4)
    assert likelihood_score(wins, losses, rows, high) == pytest.approx(-z, abs=1e-4)


@given(COUNTS, st.sampled_from([0.01, 0.05, 0.2]))
@settings(deadline=None)
def test_interval_holds_its_estimate_and_turns_round_with_its_sides(counts: PairedCounts, alpha: float) -> None:
    low, high = score_interval(counts, alpha)
    back = score_interval(PairedCounts(counts.losses, counts.wins, counts.rows), alpha)
    assert -1 <= low <= counts.difference <= high <= 1
    assert (-back[1], -back[0]) == pytest.approx((low, high), abs=1e-8)


@given(COUNTS)
@settings(deadline=None)
def test_more_confidence_is_wider_and_another_win_lifts_both_ends(counts: PairedCounts) -> None:
    narrow, wide = score_interval(counts, 0.2), score_interval(counts, 0.01)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]
    lifted = score_interval(PairedCounts(counts.wins + 1, counts.losses, counts.rows), 0.2)
    assert lifted[0] >= narrow[0] - 1e-9
    assert lifted[1] >= narrow[1] - 1e-9


@given(COUNTS.filter(lambda each: each.wins + each.losses > 0), st.sampled_from([0.01, 0.05]))
@settings(deadline=None)
def test_zero_is_outside_just_when_mcnemar_rejects(counts: PairedCounts, alpha: float) -> None:
    low, high = score_interval(counts, alpha)
    table = [[10, counts.wins], [counts.losses, 10]]
    p = mcnemar(table, exact=False, correction=False).pvalue
    if abs(p - alpha) > 1e-6:
        assert (low > 0 or high < 0) == (p < alpha)


@given(COUNTS.filter(lambda each: each.wins + each.losses > 0))
@settings(deadline=None)
def test_p_of_being_worse_is_the_exact_test_of_scipy_and_statsmodels(counts: PairedCounts) -> None:
    wins, losses = int(counts.wins), int(counts.losses)
    assert p_less(counts) == pytest.approx(binomtest(wins, wins + losses, 0.5, alternative="less").pvalue)
    other = p_less(PairedCounts(losses, wins, counts.rows))
    exact = mcnemar([[0, wins], [losses, 0]], exact=True).pvalue
    assert min(1.0, 2 * min(p_less(counts), other)) == pytest.approx(exact)


@given(COUNTS)
@settings(deadline=None)
def test_p_at_an_end_of_the_interval_is_half_of_alpha(counts: PairedCounts) -> None:
    low, high = score_interval(counts, 0.1)
    if 1e-6 < abs(high) < 1 and abs(high - counts.difference) > 1e-6:
        assert p_less(counts, high) == pytest.approx(0.05, abs=1e-4)
    if 1e-6 < abs(low) < 1 and abs(low - counts.difference) > 1e-6:
        assert p_less(counts, low) == pytest.approx(0.95, abs=1e-4)


@given(st.lists(st.sampled_from([-1, 0, 0, 0, 1]), min_size=2, max_size=200))
@settings(deadline=None)
def test_clusters_of_one_are_unclustered_rows(gains: list[int]) -> None:
    values = np.array(gains)
    won, lost = (values > 0).astype(float), (values < 0).astype(float)
    counts = paired_counts(won, lost, np.ones(len(gains)), fewest=6)
    assert (counts.effect, counts.freedom) == (1.0, None)
    assert (counts.wins, counts.losses, counts.rows) == (won.sum(), lost.sum(), len(gains))


def test_rows_that_are_copies_count_once() -> None:
    generator = np.random.default_rng(3)
    gains = generator.choice([-1, 0, 1], p=[0.1, 0.75, 0.15], size=200)
    won, lost = (gains > 0).astype(float), (gains < 0).astype(float)
    once = difference_of_rates("accuracy", won, lost, np.ones(200), HOW)
    fourfold = difference_of_rates("accuracy", 4 * won, 4 * lost, np.full(200, 4.0), HOW)
    assert fourfold.value == pytest.approx(once.value)
    assert fourfold.effect == pytest.approx(4.0, rel=0.01)
    # t with 199 degrees of freedom in place of z: 0.6 % wider.
    assert fourfold.high - fourfold.low == pytest.approx(once.high - once.low, rel=0.02)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 50)), min_size=2, max_size=80),
    st.sampled_from([0.01, 0.05, 0.1]),
)
@settings(deadline=None, max_examples=60)
def test_clustered_intervals_hold_the_value_and_are_no_narrower_than_rows_of_their_own(
    rows: list[tuple[bool, bool, int]], alpha: float
) -> None:
    first, second = ([{"correct": float(row[at])} for row in rows] for at in (0, 1))
    how = Resampling(alpha=alpha)
    clustered = paired_difference(ACCURACY, first, second, [str(row[2]) for row in rows], how)
    alone = paired_difference(ACCURACY, first, second, [str(at) for at in range(len(rows))], how)
    assert clustered is not None
    assert alone is not None
    assert clustered.low - 1e-9 <= clustered.value <= clustered.high + 1e-9
    assert clustered.low <= alone.low + 1e-9 or alone.wins + alone.losses < 8
    assert clustered.method == "score"


def test_p_of_a_ratio_is_small_when_it_loses_and_large_when_it_wins() -> None:
    f1 = Metric("slot_f1", {"tp": 2.0}, {"tp": 2.0, "fp": 1.0, "fn": 1.0})
    generator = np.random.default_rng(5)
    worse, better = (
        [{"tp": float(hit), "fp": 3.0 - hit, "fn": 3.0 - hit} for hit in generator.binomial(3, share, 200)]
        for share in (0.6, 0.8)
    )
    clusters = [str(at // 2) for at in range(200)]
    lost, won = p_worse(f1, worse, better, clusters), p_worse(f1, better, worse, clusters)
    assert lost is not None
    assert won is not None
    assert lost < 0.001
    assert won > 0.999
    within = p_worse(f1, worse, better, clusters, bound=0.5)
    assert within is not None
    assert within > 0.999


def test_holm_is_that_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
