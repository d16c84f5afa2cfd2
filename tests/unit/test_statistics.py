"""Intervals and verdicts: known closed forms, coverage, clusters, and what may be concluded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from potstill.intervals import (
    MIN_CLUSTERS,
    Difference,
    Resampling,
    decide,
    estimate,
    fewest_differing,
    paired_difference,
    rows_needed,
    verdict,
    wilson,
)
from potstill.tasks.base import Metric

ACCURACY = Metric("accuracy", {"correct": 1.0})
F1 = Metric("slot_f1", {"tp": 2.0}, {"tp": 2.0, "fp": 1.0, "fn": 1.0})
QUICK = Resampling(resamples=2000, seed=1)

Rows = list[dict[str, float]]


def marks(values: list[float] | np.ndarray) -> Rows:
    return [{"correct": float(each)} for each in values]


def alone(count: int) -> list[str]:
    return [f"c{at}" for at in range(count)]


def a_difference(value: float, low: float, high: float, n: int = 400, clusters: int = 400) -> Difference:
    return Difference("accuracy", value, low, high, n, clusters, 20, 20)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.01, 0.05]))
@settings(deadline=None)
def test_wilson_is_scipys(counts: tuple[int, int], alpha: float) -> None:
    successes, n = counts
    known = binomtest(successes, n).proportion_ci(1 - alpha, "wilson")
    assert wilson(successes, n, alpha) == pytest.approx((known.low, known.high), abs=1e-9)


def test_bootstrap_of_a_mean_matches_the_normal_interval() -> None:
    values = np.random.default_rng(3).random(1500)
    metric = Metric("token_f1", {"token_f1": 1.0})
    found = estimate(metric, [{"token_f1": each} for each in values], alone(1500), Resampling(resamples=20_000))
    assert found is not None
    half = 1.96 * values.std() / np.sqrt(1500)
    assert found.method == "bootstrap"
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.0006)


def test_paired_interval_matches_the_closed_form_of_discordant_pairs() -> None:
    first = [1.0] * 330 + [0.0] * 50 + [1.0] * 90 + [0.0] * 30  # 90 wins, 50 losses, 500 rows
    second = [1.0] * 330 + [1.0] * 50 + [0.0] * 90 + [0.0] * 30
    found = paired_difference(ACCURACY, marks(first), marks(second), alone(500), Resampling(resamples=20_000))
    assert found is not None
    assert (round(found.value, 9), found.wins, found.losses) == (0.08, 90, 50)
    half = 1.96 * np.sqrt(90 + 50 - (90 - 50) ** 2 / 500) / 500  # Wald interval of paired proportions
    assert (found.low, found.high) == pytest.approx((0.08 - half, 0.08 + half), abs=0.002)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 20)), min_size=2, max_size=60))
@settings(deadline=None, max_examples=60)
def test_difference_changes_sign_with_its_sides_and_holds_its_value(rows: list[tuple[bool, bool, int]]) -> None:
    first, second = marks([a for a, _, _ in rows]), marks([b for _, b, _ in rows])
    clusters = [str(each) for _, _, each in rows]
    there = paired_difference(ACCURACY, first, second, clusters, QUICK)
    back = paired_difference(ACCURACY, second, first, clusters, QUICK)
    assert there is not None
    assert back is not None
    assert there.value == pytest.approx(-back.value)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.low - 1e-9 <= there.value <= there.high + 1e-9


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 2), st.integers(0, 8)), min_size=1, max_size=50
    )
)
@settings(deadline=None, max_examples=60)
def test_f1_is_the_ratio_of_sums_whatever_the_clusters(rows: list[tuple[int, int, int, int]]) -> None:
    scored = [{"tp": float(tp), "fp": float(fp), "fn": float(fn)} for tp, fp, fn, _ in rows]
    found = estimate(F1, scored, [str(each[3]) for each in rows], QUICK)
    tp, fp, fn = (sum(each[at] for each in rows) for at in range(3))
    if tp + fp + fn == 0:
        assert found is None
    else:
        assert found is not None
        assert found.value == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert 0 <= found.low <= found.high <= 1


def test_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(5).random(200)
    rows = [{"t": each} for each in values]
    metric = Metric("t", {"t": 1.0})
    one, two, other = (estimate(metric, rows, alone(200), Resampling(resamples=1000, seed=seed)) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_rows_that_agree_within_conversations_widen_the_interval() -> None:
    outcomes = np.random.default_rng(7).random(60) < 0.7
    rows = marks(np.repeat(outcomes, 5))
    clustered = estimate(ACCURACY, rows, [str(at // 5) for at in range(300)], QUICK)
    independent = estimate(ACCURACY, rows, alone(300), QUICK)
    assert clustered is not None
    assert independent is not None
    widened = (clustered.high - clustered.low) / (independent.high - independent.low)
    assert widened == pytest.approx(np.sqrt(5), rel=0.15)  # the design effect of clusters of five equal rows


def test_interval_covers_the_truth_about_as_often_as_it_claims() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    clusters = [str(at // 4) for at in range(320)]
    for trial in range(300):
        level = np.repeat(generator.beta(6, 2, size=80), 4)  # conversations differ; mean 0.75
        second = generator.random(320) < level
        first = generator.random(320) < level
        found = paired_difference(ACCURACY, marks(first), marks(second), clusters, Resampling(0.05, 1000, trial))
        assert found is not None
        covered += found.low <= 0 <= found.high
    assert 0.91 <= covered / 300 <= 0.985


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_or_all_wrong_is_not_certainty(right: float) -> None:
    single = estimate(ACCURACY, marks([right] * 100), alone(100), QUICK)
    grouped = estimate(ACCURACY, marks([right] * 100), [str(at // 2) for at in range(100)], QUICK)
    assert single is not None
    assert grouped is not None
    known = binomtest(int(right * 100), 100).proportion_ci(0.95, "wilson")
    assert (single.low, single.high) == pytest.approx((known.low, known.high))
    assert grouped.high - grouped.low > single.high - single.low  # 50 conversations know less than 100


def test_identical_candidates_are_not_proven_equal_by_few_rows() -> None:
    rows = marks([1.0, 0.0] * 40)
    found = paired_difference(ACCURACY, rows, rows, alone(80), QUICK)
    assert found is not None
    assert found.low == pytest.approx(-wilson(0, 80, 0.05)[1])
    assert decide(found, margin=0.01).verdict == "undecided"
    assert decide(found, margin=0.05).verdict == "non_inferior"


def test_losing_every_row_is_not_certainty_either() -> None:
    found = paired_difference(ACCURACY, marks([0.0] * 50), marks([1.0] * 50), alone(50), QUICK)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-1.0, -1.0 + 2 * wilson(0, 50, 0.05)[1]))  # of [-1, 1]


def test_a_handful_of_wins_without_a_loss_is_not_superior() -> None:
    assert fewest_differing(0.05) == 6
    for wins, allowed in ((5, False), (12, True)):
        first, second = marks([1.0] * 400), marks([0.0] * wins + [1.0] * (400 - wins))
        found = paired_difference(ACCURACY, first, second, alone(400), QUICK)
        assert found is not None
        assert (decide(found, 0.02).verdict == "superior") is allowed


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.03, "superior"),
        (0.0, 0.03, "non_inferior"),
        (-0.02, 0.03, "non_inferior"),
        (-0.015, -0.005, "non_inferior"),  # worse, but by less than the margin
        (-0.021, 0.01, "undecided"),
        (-0.05, -0.02, "undecided"),
        (-0.05, -0.0201, "inferior"),
    ],
)
def test_verdict_against_a_margin_of_two_points(low: float, high: float, expected: str) -> None:
    assert verdict(low, high, 0.02) == expected


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_a_larger_margin_never_makes_a_verdict_worse(low: float, width: float, margin: float) -> None:
    rank = {"inferior": 0, "undecided": 1, "non_inferior": 2, "superior": 3}
    assert rank[verdict(low, low + width, margin)] <= rank[verdict(low, low + width, margin + 0.1)]


def test_too_few_conversations_conclude_nothing_and_say_how_many_would_do() -> None:
    found = decide(a_difference(0.2, 0.1, 0.3, n=100, clusters=10), margin=0.02)
    assert found.verdict == "undecided"
    assert f"at least {MIN_CLUSTERS} conversations (about 300 rows)" in found.reason
    assert found.rows_needed == 300


def test_undecided_names_rows_that_then_decide() -> None:
    generator = np.random.default_rng(13)

    def trial(n: int) -> Difference:
        second = generator.random(n) < 0.80
        first = np.where(generator.random(n) < 0.12, generator.random(n) < 0.80, second)
        found = paired_difference(ACCURACY, marks(first), marks(second), alone(n), Resampling(resamples=1000))
        assert found is not None
        return found

    start = trial(200)
    needed = rows_needed(a_difference(0.0, start.low - start.value, start.high - start.value, n=200), 0.02)
    assert needed is not None
    assert needed > 200
    decided = sum(decide(trial(needed), 0.02).verdict in ("non_inferior", "superior") for _ in range(40))
    assert decided >= 24  # 32 of 40 expected at a power of 0.8


def test_a_difference_on_the_margin_needs_no_end_of_rows() -> None:
    assert rows_needed(a_difference(-0.02, -0.05, 0.01), 0.02) is None


def test_unpaired_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(ACCURACY, marks([1, 0]), marks([1]), alone(2), QUICK)
