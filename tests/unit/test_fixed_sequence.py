"""`choose: smallest`: from the largest file to the smallest, stop at the first that fails, error kept."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.gate import GateRule, judge_all, largest_first
from evaluation.report import Rules, comparison
from potstill.errors import PotstillError
from potstill.intervals import Resampling, difference_of_rates
from potstill.records import Json

FILES = ("artifact:gguf-f16", "artifact:gguf-q8_0", "artifact:gguf-q4_k_m")
RULES = Rules(0.05, "quality", Resampling())
ENTRY: Json = {"errors": 0, "rows": 1000, "valid_rate": 1.0}
CANDIDATES = {name: {**ENTRY, "size_bytes": size} for name, size in zip(FILES, (300, 200, 100), strict=True)}


def against_teacher(name: str, wins: int, losses: int, rows: int = 1000) -> Json:
    at = np.arange(rows)
    won, lost = (at < wins).astype(float), ((at >= wins) & (at < wins + losses)).astype(float)
    found = difference_of_rates("accuracy", won, lost, np.ones(rows), RULES.how)
    return comparison(name, "teacher", found, None, RULES, None)


def judged(*counts: tuple[int, int]) -> Json:
    rule = GateRule(FILES[0], "teacher", "non_inferior", choose="smallest", order=FILES)
    comparisons = [against_teacher(name, *each) for name, each in zip(FILES, counts, strict=True)]
    return judge_all(rule, comparisons, CANDIDATES, "gold")[0]


EQUAL, BETTER, WORSE = (40, 40), (90, 40), (20, 90)


def test_files_go_from_the_largest_to_the_smallest() -> None:
    assert largest_first({"teacher": None, FILES[2]: 100, FILES[0]: 300, FILES[1]: 200}) == FILES
    with pytest.raises(PotstillError, match="size is not known of artifact:x"):
        largest_first({"artifact:x": None})
    with pytest.raises(PotstillError, match="no exported file"):
        largest_first({"adapter": 5})


def test_the_smallest_ships_when_all_pass() -> None:
    gate = judged(EQUAL, EQUAL, EQUAL)
    assert (gate["passed"], gate["shipped"], gate["candidate"]) == (True, FILES[2], FILES[2])
    assert "it is the smallest" in gate["reasons"][-1]


def test_the_last_that_passed_ships_and_the_failure_is_named() -> None:
    gate = judged(EQUAL, EQUAL, WORSE)
    assert (gate["passed"], gate["shipped"]) == (True, FILES[1])
    assert f"{FILES[2]} did not pass" in gate["reasons"][-1]


def test_a_file_behind_a_failure_is_not_tested_however_good() -> None:
    gate = judged(EQUAL, WORSE, EQUAL)
    assert gate["shipped"] == FILES[0]
    assert [each["tested"] for each in gate["sequence"]] == [True, True, False]
    assert gate["sequence"][2]["verdict"] is None
    assert "1 smaller one was not tested" in gate["reasons"][-1]


def test_nothing_ships_when_the_largest_fails() -> None:
    gate = judged(WORSE, BETTER, BETTER)
    assert (gate["passed"], gate["shipped"], gate["candidate"]) == (False, None, FILES[0])


def test_superior_is_read_only_behind_larger_files_that_are_superior() -> None:
    assert [each["superior"] for each in judged(BETTER, EQUAL, BETTER)["sequence"]] == [True, False, False]
    assert [each["superior"] for each in judged(BETTER, BETTER, BETTER)["sequence"]] == [True, True, True]


def test_chance_of_passing_any_file_that_is_worse_by_the_margin_is_that_of_one_test() -> None:
    """The first file is equal, the other two exactly at the margin, their answers nearly the same."""
    generator, wrong, trials, rows = np.random.default_rng(7), 0, 600, 1000
    for _ in range(trials):
        counts = []
        for difference in (0.0, -0.05, -0.05):
            wins = generator.binomial(rows, 0.1 + difference / 2)
            counts.append((wins, generator.binomial(rows - wins, (0.1 - difference / 2) / (0.9 - difference / 2))))
        wrong += judged(*counts)["shipped"] in FILES[1:]
    assert wrong / trials <= 0.045  # 2.5 % and three standard errors


def test_one_file_is_judged_as_before() -> None:
    rule = GateRule(FILES[1], "teacher", "non_inferior")
    gate, _ = judge_all(rule, [against_teacher(FILES[1], *EQUAL)], CANDIDATES, "gold")
    assert (gate["passed"], gate["shipped"]) == (True, FILES[1])
    assert "sequence" not in gate
