"""Which evaluation's weights are kept: by score beyond chance, then the lowest loss; and when evaluations are due."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stages.toy_training import METRIC, PLAN, scored, toy_model, toy_units, weights_digest
from training import loop
from training.loop import Progressed, evaluated_at, train
from training.objectives.answers import Answers
from training.packing import Stream
from training.scoring import Score
from training.watch import Watch


def chosen(
    folder: Path, found: list[tuple[float | None, float]], steps: int = 4, **changes: Any
) -> tuple[Progressed, list[str], str]:
    """Train on a toy with these scores and losses at its evaluations, step 0 first.

    Returns the end, the weights at each evaluation, and those that the model is left with.
    """
    model, at, digests = toy_model(), iter(found), list[str]()
    values: list[tuple[float | None, float]] = []

    def loss(*_: Any) -> tuple[float, dict[str, float]]:
        values.append(next(at))
        digests.append(weights_digest(model))
        return values[-1][1], {}

    def score() -> Score | None:
        value = values[-1][0]
        return None if value is None else scored(value, 1000)

    stream = Stream(toy_units(0, 24), seed=3, step_tokens=48, max_steps=steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "held_out_loss", loss)
        done = train(
            model, Answers(stream.units), stream, toy_units(40, 5), replace(PLAN, **changes),
            Watch(folder / "log.jsonl", stream.steps), folder / "checkpoints", score,
        )  # fmt: skip
    return done, digests, weights_digest(model)


@pytest.mark.parametrize(
    ("found", "best"),
    [
        (
            [(0.1, 1.0), (0.90, 0.3), (0.92, 0.6), (0.9, 0.2), (0.89, 0.1)],
            2,
        ),  # a score surely higher, whatever the loss
        ([(0.1, 1.0), (0.90, 0.3), (0.91, 12.0), (0.90, 0.3), (0.90, 0.3)], 2),  # however overfit
        ([(0.1, 1.0), (0.900, 0.3), (0.902, 0.6), (0.899, 0.2), (0.89, 0.1)], 3),  # two rows of a thousand are chance
        ([(0.1, 1.0), (0.900, 0.5), (0.896, 0.48), (0.892, 0.46), (0.888, 0.44)], 2),  # it does not sink by and by
        ([(0.1, 1.0), (0.9, 0.5), (0.9, 0.4), (0.9, 0.45), (0.9, 0.4)], 2),  # the loss between equals, then the first
        ([(None, 1.0), (None, 0.6), (None, 0.5), (None, 0.4), (None, 0.7)], 3),  # the loss alone
        ([(0.9, 0.1), (0.5, 0.3), (0.6, 0.2), (0.4, 0.4), (0.5, 0.5)], 2),  # never the untrained base
    ],
)
def test_the_best_score_is_kept_and_the_loss_decides_where_chance_could(
    found: list[tuple[float | None, float]], best: int, tmp_path: Path
) -> None:
    done, digests, left = chosen(tmp_path, found)
    assert done.best_step == best
    assert left == digests[best]
    assert len(set(digests)) == len(digests)


def test_a_second_phase_may_leave_the_weights_that_it_began_with(tmp_path: Path) -> None:
    found = [(0.9, 0.1), (0.5, 0.3), (0.6, 0.2), (0.4, 0.4), (0.5, 0.5)]
    done, digests, left = chosen(tmp_path, list(found), keep_start=True)
    assert (done.best_step, left) == (0, digests[0])


def test_in_a_second_phase_nothing_that_scores_lower_takes_the_place_of_its_beginning(tmp_path: Path) -> None:
    found = [(0.900, 0.7), (0.899, 0.1), (0.899, 0.05), (0.900, 0.6), (0.900, 0.65)]
    done, digests, left = chosen(tmp_path, list(found), keep_start=True)
    assert (done.best_step, left) == (3, digests[3])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=40, max_size=120))
def test_a_score_is_beyond_chance_one_way_alone_and_never_with_less_than_six_rows_between(
    hits: list[tuple[bool, bool]],
) -> None:
    first, second = ([{"hit": float(each[at])} for each in hits] for at in (0, 1))
    names = tuple(str(at) for at in range(len(hits)))
    ours, theirs = (Score(0.5, len(hits), None, None, METRIC, parts, names) for parts in (first, second))
    found = ours.beyond_chance(second)
    assert found == -theirs.beyond_chance(first)
    won, lost = (sum(a and not b for a, b in pairs) for pairs in (hits, [(b, a) for a, b in hits]))
    assert found == 0 or won + lost >= 6
    assert found in (0, (won > lost) - (won < lost))
    assert ours.beyond_chance(second[1:]) == 0


def test_without_held_out_rows_the_last_step_is_the_one_that_is_named(tmp_path: Path) -> None:
    stream = Stream(toy_units(0, 24), seed=3, step_tokens=48, max_steps=3)
    watch = Watch(tmp_path / "log.jsonl", stream.steps)
    done = train(toy_model(), Answers(stream.units), stream, [], PLAN, watch, tmp_path / "checkpoints")
    assert (done.best_step, done.best_loss) == (3, None)


@pytest.mark.parametrize(
    ("steps", "evals", "wanted"),
    [(7, 4, [0, 2, 4, 5, 7]), (8, 4, [0, 2, 4, 6, 8]), (53, 2, [0, 27, 53]), (3, 4, [0, 1, 2, 3]), (1, 4, [0, 1])],
)
def test_evaluations_are_as_many_as_the_setting_says_and_evenly_spread(
    steps: int, evals: int, wanted: list[int]
) -> None:
    assert sorted(evaluated_at(steps, evals)) == wanted


@given(st.integers(1, 500), st.integers(1, 100))
def test_the_last_evaluation_is_at_the_end_and_none_is_far_from_its_place(steps: int, evals: int) -> None:
    found = sorted(evaluated_at(steps, evals))
    assert (found[0], found[-1]) == (0, steps)
    assert len(found) == 1 + min(steps, evals)
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert max(gaps) - min(gaps) <= 1


def test_patience_counts_the_evaluations_without_a_better_one(tmp_path: Path) -> None:
    found = [(0.1, 1.0), (0.5, 0.5), (0.4, 0.4), (0.5, 0.6), (0.9, 0.1), (0.9, 0.1)]
    done, digests, left = chosen(tmp_path, list(found), steps=10, evals=5, patience=2)
    assert (done.step, done.best_step, done.stopped) == (6, 2, True)
    assert left == digests[1]


def test_what_is_remembered_of_the_best_goes_through_json_unchanged() -> None:
    done = Progressed(step=3, best_score=0.1 + 0.2, best_loss=1 / 3, best_step=2, stale=1, evaluated=3)
    done.best_parts = [{"hit": 1 / 3}, {"hit": 0.0}]
    assert Progressed(**json.loads(json.dumps(loop.asdict(done)))) == done
