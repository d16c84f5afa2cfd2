"""Promises of sampling: the budget is met, rare labels stay, different rows come first, order does not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation import sample
from distillation.sample import Budget, allocate, choose_rows, diverse, stratified

sizes_of_labels = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60), min_size=1)


@given(sizes_of_labels, st.integers(1, 200), st.sampled_from(["square_root", "proportional"]), st.integers(0, 4))
def test_an_allocation_spends_the_budget_and_gives_no_label_more_than_it_has(
    sizes: dict[str, int], budget: int, how: sample.Allocation, least: int
) -> None:
    given_ = allocate(sizes, budget, how=how, least=least)
    assert sum(given_.values()) == min(budget, sum(sizes.values()))
    assert all(given_[label] <= sizes[label] for label in sizes)
    if budget >= sum(min(least, size) for size in sizes.values()):
        assert all(given_[label] >= min(least, sizes[label]) for label in sizes)
    assert all(given_[a] >= given_[b] for a in sizes for b in sizes if sizes[a] > sizes[b])


def test_shares_go_with_the_size_or_with_its_square_root() -> None:
    sizes = {"often": 9000, "rarely": 90}
    assert allocate(sizes, 1000, how="proportional") == {"often": 990, "rarely": 10}
    assert allocate(sizes, 880, how="square_root") == {"often": 800, "rarely": 80}
    assert allocate(sizes, 1, how="square_root") == {"often": 1, "rarely": 0}


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=60), st.integers(1, 40), st.randoms(use_true_random=False))
def test_a_stratified_choice_does_not_depend_on_the_order_of_the_rows(
    labels: list[str], budget: int, rnd: object
) -> None:
    ids = [f"row {at}" for at in range(len(labels))]
    mixed = list(range(len(labels)))
    rnd.shuffle(mixed)  # type: ignore[attr-defined]
    chosen = {ids[row] for row in stratified(labels, budget, 3, ids)}
    again = {ids[mixed[row]] for row in stratified([labels[at] for at in mixed], budget, 3, [ids[at] for at in mixed])}
    assert chosen == again
    assert len(chosen) == min(budget, len(labels))


def test_a_larger_budget_keeps_what_a_smaller_one_chose() -> None:
    ids, labels = [f"row {at}" for at in range(300)], ["a", "b", "b"] * 100
    small, large = stratified(labels, 40, 1, ids), stratified(labels, 120, 1, ids)
    assert set(small) < set(large)


def clustered(clusters: int, members: int, seed: int = 0) -> np.ndarray:
    """Signatures in clusters: members of one share about 9 places in 10, those of different ones none."""
    rng = np.random.default_rng(seed)
    middles = rng.integers(0, 2**32, (clusters, 128), dtype=np.uint32)
    rows = np.repeat(middles, members, axis=0)
    noise = rng.random(rows.shape) < 0.1
    return np.where(noise, rng.integers(0, 2**32, rows.shape, dtype=np.uint32), rows)


def test_a_diverse_choice_takes_one_of_each_cluster_before_a_second_of_any() -> None:
    signatures, ids = clustered(30, 20), [f"row {at}" for at in range(600)]
    assert sorted(row // 20 for row in diverse(signatures, 30, 0, ids)) == list(range(30))


def test_a_diverse_choice_is_the_farthest_first_walk() -> None:
    signatures, ids = clustered(5, 6, seed=2), [f"row {at}" for at in range(30)]
    low = signatures.astype(np.uint8)
    equal = (low[:, None] == low[None]).sum(axis=2)
    chosen = set(diverse(signatures, 12, 0, ids))
    walk = [next(iter(sorted(range(30), key=lambda row: sample.share_of(0, ids[row]))))]
    while len(walk) < 12:
        rest = [row for row in range(30) if row not in walk]
        walk.append(min(rest, key=lambda row: (equal[row, walk].max(), sample.share_of(0, ids[row]))))
    assert chosen == set(walk)


def test_identical_rows_never_lead_to_a_row_twice() -> None:
    signatures = np.zeros((50, 128), np.uint32)
    assert len(set(diverse(signatures, 20, 0, [str(at) for at in range(50)]))) == 20


def test_a_diverse_choice_does_not_depend_on_the_order_of_the_rows() -> None:
    signatures, ids = clustered(10, 10), np.array([f"row {at}" for at in range(100)])
    mixed = np.random.default_rng(5).permutation(100)
    assert set(ids[diverse(signatures, 25, 1, list(ids))]) == set(
        ids[mixed][diverse(signatures[mixed], 25, 1, list(ids[mixed]))]
    )


def test_many_rows_are_searched_in_groups_that_meet_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    signatures, ids = clustered(40, 10), [f"row {at}" for at in range(400)]
    monkeypatch.setattr(sample, "MOST_COMPARISONS", 10_000)
    chosen = diverse(signatures, 100, 0, ids)  # four groups of 100 rows, each giving 25 rows of different clusters
    assert len(set(chosen)) == 100
    assert max(np.bincount(np.array(chosen) // 10)) <= 4


@pytest.mark.parametrize("how", ["stratified", "diverse", "random"])
def test_every_way_keeps_the_budget_and_all_rows_without_one(how: sample.How) -> None:
    ids, labels, signatures = [str(at) for at in range(60)], ["a", "b"] * 30, clustered(6, 10)
    assert choose_rows(Budget(how=how), ids, labels, signatures) == list(range(60))
    chosen = choose_rows(Budget(rows=17, how=how), ids, labels, signatures)
    assert len(set(chosen)) == 17
    assert chosen == sorted(chosen)
    assert chosen != choose_rows(Budget(rows=17, how=how, seed=9), ids, labels, signatures)
