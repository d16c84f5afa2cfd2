"""Promises of a sweep, on a scripted objective: spaces judged before compute, kills survived, plain words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.commands.recipes import sections
from potstill.errors import PotstillError, RecipeError
from potstill.intervals import wilson
from potstill.recipe import Recipe, load_recipe
from potstill.stage_finder import stage_modules
from potstill.sweeping.page import page
from potstill.sweeping.proposals import hopeless, propose
from potstill.sweeping.report import as_lines, report
from potstill.sweeping.rows import Metric, Row
from potstill.sweeping.search import search
from potstill.sweeping.settings import Space, SweepSettings
from potstill.sweeping.spaces import as_text, current_values, holds, refuse_faulty, rounded
from potstill.sweeping.study import Study
from potstill.sweeping.trials import curve, evaluations, judged, kept_figures
from potstill.yaml_positions import read_positioned

SECTIONS = sections(stage_modules())
GOOD = """\
name: mail
task: {kind: classification, labels: [spam, ham]}
base_model: someone/model
distill: {sources: [{path: log.jsonl}]}
evaluate: {margin: 0.02}
register: {model: mail}
sweep:
  keys:
    train.learning_rate: {log: [1.0e-4, 1.0e-3]}
    train.lora.rank: {choice: [8, 16, 32]}
    train.epochs: {range: [1, 3]}
"""
KEYS = {
    "train.learning_rate": Space(log=(1e-4, 1e-3)),
    "train.lora.rank": Space(choice=[8, 16, 32]),
    "train.epochs": Space(range=(1, 3)),
}
CURRENT = {"train.learning_rate": 2e-4, "train.lora.rank": 16, "train.epochs": 2}


def recipe_of(folder: Path, text: str = GOOD, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides, SECTIONS)


def faults_of(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        refuse_faulty(recipe_of(folder, text, *overrides), SECTIONS)
    return [each[each.index("recipe.yaml:") :] if "recipe.yaml:" in each else each for each in caught.value.faults]


def test_good_keys_pass(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    refuse_faulty(recipe, SECTIONS)
    assert current_values(recipe, KEYS) == CURRENT


@pytest.mark.parametrize(
    ("wrong", "right", "fault"),
    [
        ("train.lora.rank", "train.lora.rnak", "recipe.yaml:10:5: train.lora.rnak: not a setting (did you mean rank?)"),
        ("train.epochs", "train.epoch", "recipe.yaml:11:5: train.epoch: not a setting (did you mean epochs?)"),
        ("train.epochs", "distill.seed", "recipe.yaml:11:5: sweep.keys.distill.seed: only train.* can be swept: every"),
        ("train.epochs", "train.score_rows", "recipe.yaml:11:5: sweep.keys.train.score_rows: is how trials are meas"),
        ("16, 32]", "16, 1024]", "recipe.yaml:10:39: train.lora.rank: found 1024; input should be less than or equal"),
        ("1.0e-3]", "3]", "recipe.yaml:9:41: train.learning_rate: found 3; input should be less than 1"),
        ("[1, 3]", "[0, 3]", "recipe.yaml:11:28: train.epochs: found 0; input should be greater than 0"),
    ],
)
def test_key_or_extreme_value_that_is_no_setting_is_named_at_its_place(
    tmp_path: Path, wrong: str, right: str, fault: str
) -> None:
    assert wrong in GOOD
    found = faults_of(tmp_path, GOOD.replace(wrong, right))
    assert found[0].startswith(fault)


@pytest.mark.parametrize(
    ("wrong", "right", "fault"),
    [
        ("log: [1.0e-4, 1.0e-3]", "log: [1.0e-3, 1.0e-4]", "recipe.yaml:9:5: sweep.keys.train.learning_rate: log is"),
        ("log: [1.0e-4,", "log: [0,", "recipe.yaml:9:5: sweep.keys.train.learning_rate: log is [0, 0.001], expected 0"),
        ("{range: [1, 3]}", "{range: [1, 3], choice: [1, 2]}", "recipe.yaml:11:5: sweep.keys.train.epochs: found ran"),
        ("{range: [1, 3]}", "{}", "recipe.yaml:11:5: sweep.keys.train.epochs: found none, expected one of range, log,"),
        ("[8, 16, 32]", "[8]", "recipe.yaml:10:5: sweep.keys.train.lora.rank: choice is [8], expected two or more"),
        ("range:", "rnage:", "recipe.yaml:11:20: sweep.keys.train.epochs.rnage: not a setting (did you mean range?)"),
        ("  keys:", "  metrc: loss\n  keys:", "recipe.yaml:8:3: sweep.metrc: not a setting (did you mean metric?)"),
    ],
)
def test_space_that_is_none_is_named_at_its_place(tmp_path: Path, wrong: str, right: str, fault: str) -> None:
    assert wrong in GOOD
    found = faults_of(tmp_path, GOOD.replace(wrong, right))
    assert found[0].startswith(fault)


def test_faults_of_several_keys_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("16, 32]", "16, 1024]").replace("[1, 3]", "[0, 300]").replace("train.learning", "learning")
    assert [each.split(": ")[0] for each in faults_of(tmp_path, text)] == [
        "recipe.yaml:9:5",
        "recipe.yaml:10:39",
        "recipe.yaml:11:28",
        "recipe.yaml:11:31",
    ]


def test_space_given_on_the_command_line_is_named_there(tmp_path: Path) -> None:
    override = "sweep.keys={train.lora.rank: {choice: [8, 1024]}}"
    (found,) = faults_of(tmp_path, GOOD, override)
    assert found.startswith(f"command line: {override}: train.lora.rank: found 1024")


def test_score_without_score_rows_is_refused(tmp_path: Path) -> None:
    (found,) = faults_of(tmp_path, GOOD + "train: {score_rows: 0}\n")
    assert found.startswith("recipe.yaml:12:9: train.score_rows: found 0")
    refuse_faulty(recipe_of(tmp_path, GOOD + "train: {score_rows: 0}\n", "sweep.metric=loss"), SECTIONS)


spaces = st.one_of(
    st.tuples(st.floats(1e-6, 1e-2), st.floats(1e-2, 10)).filter(lambda e: e[0] < e[1]).map(lambda e: Space(log=e)),
    st.tuples(st.integers(-5, 5), st.integers(6, 40)).map(lambda ends: Space(range=ends)),
    st.lists(st.sampled_from([1, 2.5, "a", True, None, "1e-4", "yes"]), min_size=2, max_size=4, unique_by=repr)
    .filter(lambda values: len({(type(v), v) for v in values}) == len(values))
    .map(lambda values: Space(choice=values)),
)


@given(st.dictionaries(st.sampled_from(["train.a", "train.b", "train.c"]), spaces, min_size=1), st.integers(0, 9))
def test_proposals_lie_in_the_space_and_come_back_from_the_command_line(keys: dict[str, Space], seed: int) -> None:
    values = propose(keys, [], "score", seed)
    assert values is not None
    for key, value in values.items():
        assert holds(keys[key], value)
        assert rounded(keys[key], value) == value


@given(st.one_of(st.booleans(), st.none(), st.integers(), st.floats(1e-9, 1e9), st.text(st.characters(codec="ascii"))))
def test_value_written_as_an_override_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.yaml"
    path.write_text(f"a: {as_text(value)}\n")
    found = read_positioned(path).data["a"]
    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)


def fake_score(values: Any) -> float:
    """Best near 5e-4 and rank 16."""
    far = abs(math.log10(values["train.learning_rate"] / 5e-4)) + abs(math.log2(values["train.lora.rank"] / 16)) / 8
    return round(max(0.0, 0.9 - 0.3 * far), 2)


def measured(row: Row) -> Row:
    score = fake_score(row.values)
    low, high = wilson(score * 100, 100)
    return replace(row, state="done", score=score, low=low, high=high, rows=100, loss=1 - score, curve=(0.1, score))


def fake(row: Row, before: Sequence[Row]) -> Row:
    """A scripted training: the third trial learns nothing, the fifth crashes."""
    if row.number == 3:
        return replace(row, state="nothing learned", reason="the loss is flat")
    return replace(row, state="failed", reason="out of memory") if row.number == 5 else measured(row)


class Killed(BaseException):
    """Stands for what no handler sees."""


def sweep_in(folder: Path, attempt: Callable[..., Row] = fake, trials: int = 9, seed: int = 0) -> list[Row]:
    study = Study(folder, "mail", KEYS, "score")
    return search(study, CURRENT, trials, seed, attempt, lambda row: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return sweep_in(tmp_path_factory.mktemp("whole"))


def test_first_trial_is_the_recipe_as_it_stands_and_no_settings_are_tried_twice(whole: list[Row]) -> None:
    assert whole[0].default
    assert whole[0].values == CURRENT
    assert len({str(row.values) for row in whole}) == len(whole) == 9


def test_trial_that_learns_nothing_or_crashes_is_kept_with_its_reason_and_is_not_the_end(whole: list[Row]) -> None:
    assert (whole[3].state, whole[3].reason) == ("nothing learned", "the loss is flat")
    assert (whole[5].state, whole[5].reason) == ("failed", "out of memory")
    assert [row.state for row in whole[6:]] == ["done"] * 3


@pytest.mark.parametrize("at", [0, 1, 4, 8])
def test_killed_sweep_goes_on_with_the_same_trial_and_ends_with_the_same_table(
    tmp_path: Path, whole: list[Row], at: int
) -> None:
    begun: list[Row] = []

    def dies(row: Row, before: Sequence[Row]) -> Row:
        begun.append(row)
        if row.number == at:
            raise Killed
        return fake(row, before)

    with pytest.raises(Killed):
        sweep_in(tmp_path, dies)
    again: list[Row] = []

    def counted(row: Row, before: Sequence[Row]) -> Row:
        again.append(row)
        return fake(row, before)

    assert sweep_in(tmp_path, counted) == whole
    assert again[0] == begun[-1]
    assert len(again) == 9 - at


def test_finished_sweep_trains_nothing_and_more_trials_change_no_earlier_one(tmp_path: Path, whole: list[Row]) -> None:
    assert sweep_in(tmp_path, trials=5) == whole[:5]

    def never(row: Row, before: Sequence[Row]) -> Row:
        raise AssertionError("a finished sweep trained")

    assert sweep_in(tmp_path, never, trials=5) == whole[:5]
    assert sweep_in(tmp_path) == whole


def test_figures_stored_before_the_end_of_a_trial_do_not_end_it(tmp_path: Path) -> None:
    """A kill between the two writes that end a trial."""
    import optuna

    study = Study(tmp_path, "mail", KEYS, "score")
    running = study.begin(CURRENT, default=True)
    stored = optuna.load_study(study_name="mail", storage=f"sqlite:///{tmp_path / 'study.db'}")
    optuna.trial.Trial(stored, stored.trials[0]._trial_id).set_user_attr("potstill.row", vars_of(measured(running)))
    assert Study(tmp_path, "mail", KEYS, "score").rows() == [running]


def vars_of(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Row.__slots__}


def test_another_seed_tries_other_settings(tmp_path: Path, whole: list[Row]) -> None:
    other = sweep_in(tmp_path, seed=1)
    assert other[0] == whole[0]
    assert [row.values for row in other[1:]] != [row.values for row in whole[1:]]


def test_search_finds_better_settings_than_it_began_with(tmp_path: Path) -> None:
    rows = sweep_in(tmp_path, lambda row, before: measured(row), trials=20)
    assert max(row.score or 0 for row in rows) > (rows[0].score or 0) + 0.05


def test_three_crashes_in_a_row_stop_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=r"last 3 trials crashed, the last with: no CUDA"):
        sweep_in(tmp_path, lambda row, before: replace(row, state="failed", reason="no CUDA"))


def test_space_with_few_points_ends_when_all_were_tried(tmp_path: Path) -> None:
    keys = {"train.lora.rank": Space(choice=[8, 16, 32]), "train.packing": Space(choice=[True, False])}
    study = Study(tmp_path, "few", keys, "score")
    current = {"train.lora.rank": 8, "train.packing": True}
    rows = search(study, current, 50, 0, lambda r, b: replace(r, state="done", score=0.5, loss=1.0), lambda row: None)
    assert len({str(row.values) for row in rows}) == len(rows) == 6


def test_recipe_outside_the_space_is_still_the_first_trial(tmp_path: Path) -> None:
    study = Study(tmp_path, "outside", KEYS, "score")
    current = CURRENT | {"train.learning_rate": 5e-2}
    rows = search(study, current, 3, 0, lambda row, before: measured(row), lambda row: None)
    assert rows[0].values == current
    assert Study(tmp_path, "outside", KEYS, "score").rows() == rows


@pytest.mark.parametrize(("metric", "worse", "better"), [("score", 0.2, 0.8), ("loss", 0.8, 0.2)])
def test_only_a_trial_behind_the_others_at_the_same_evaluation_is_given_up(
    metric: Metric, worse: float, better: float
) -> None:
    others = [
        Row(at, CURRENT, "done", score=0.5, loss=0.5, curve=(1.0, 0.5 + at / 100, 0.5 + at / 100)) for at in range(5)
    ]
    assert hopeless((1.0 if metric == "loss" else 0.0, worse, worse), KEYS, others, metric)
    assert not hopeless((1.0, better, better), KEYS, others, metric)
    assert not hopeless((worse,), KEYS, others, metric)  # before training nothing is known
    assert not hopeless((0.0, worse, worse), KEYS, others[:3], metric)


def test_figures_are_those_of_the_checkpoint_that_is_kept() -> None:
    evaluated: list[Any] = [
        {"step": 0, "eval_loss": 3.0, "eval_score": 0.1},
        {"step": 2, "eval_loss": 0.8, "eval_score": 0.8, "eval_score_low": 0.7, "eval_score_high": 0.9},
        {"step": 4, "eval_loss": 0.7, "eval_score": 0.6},
    ]
    found = kept_figures(evaluated, {"best_checkpoint_step": 2, "tokens_per_second": 10.0})
    assert found == {"score": 0.8, "low": 0.7, "high": 0.9, "loss": 0.8, "tokens_per_second": 10.0}


def test_evaluations_are_read_from_a_log_that_is_being_written(tmp_path: Path) -> None:
    log = tmp_path / "trainer_log.jsonl"
    assert curve(log, "score") == ()
    lines = [{"step": 0, "eval_loss": 3, "eval_score": 0.1}, {"step": 1, "loss": 2}, {"step": 2, "eval_loss": 1.5}]
    log.write_text("".join(json.dumps(each) + "\n" for each in lines) + '{"step": 4, "eval_')
    assert curve(log, "score") == (0.1,)
    assert curve(log, "loss") == (3, 1.5)
    assert [each["step"] for each in evaluations(log)] == [0, 2]


def test_fault_that_is_not_the_trials_own_stops_the_sweep() -> None:
    assert judged(1, {"error": "NothingLearned", "message": "flat"}, 2)["state"] == "nothing learned"
    assert judged(1, {"error": "OutOfMemoryError", "message": "16 GiB", "crash": True}, 2)["state"] == "failed"
    assert "memory" in judged(-9, {}, 2)["reason"]
    with pytest.raises(PotstillError, match="trial 2: files disagree"):
        judged(4, {"error": "ManifestMismatch", "message": "files disagree"}, 2)
    with pytest.raises(KeyboardInterrupt):
        judged(-15, {}, 2)


def reported(folder: Path, scores: Sequence[float], rows: int = 100) -> Any:
    found = []
    for at, score in enumerate(scores):
        low, high = wilson(score * rows, rows)
        values = CURRENT | {"train.learning_rate": round((2 + at) * 1e-4, 4)}
        found.append(Row(at, values, "done", at == 0, score, low, high, rows, 1 - score, 100.0, 1.0, f"adapter-{at}"))
    return report(recipe_of(folder), "abc", found)


def test_best_that_overlaps_with_the_recipe_is_called_undecided(tmp_path: Path) -> None:
    found = reported(tmp_path, [0.85, 0.88, 0.80])
    assert found["best"] == 1
    assert found["undecided"]
    assert "against the recipe as it stands (trial 0): UNDECIDED" in as_lines(found)
    assert "overlap, on the same 100 rows" in as_lines(found)


def test_best_that_stands_apart_is_called_better_and_its_overrides_are_given(tmp_path: Path) -> None:
    found = reported(tmp_path, [0.50, 0.90, 0.60])
    assert not found["undecided"]
    assert found["overrides"] == ["train.learning_rate=0.0003", "train.lora.rank=16", "train.epochs=2"]
    assert found["command"].endswith("recipe.yaml train.learning_rate=0.0003 train.lora.rank=16 train.epochs=2")
    assert "(trial 0): better" in as_lines(found)


def test_recipe_that_is_not_beaten_stays_as_it_is(tmp_path: Path) -> None:
    found = reported(tmp_path, [0.90, 0.50])
    assert found["overrides"] == []
    assert "nothing to change" in as_lines(found)


def test_equal_scores_are_told_apart_by_loss_and_number(tmp_path: Path) -> None:
    rows = [Row(at, CURRENT, "done", at == 0, 0.5, 0.4, 0.6, 100, loss) for at, loss in enumerate([0.9, 0.7, 0.7])]
    assert report(recipe_of(tmp_path), "abc", rows)["best"] == 1


def test_importances_need_some_trials_and_name_the_key_that_matters(tmp_path: Path, whole: list[Row]) -> None:
    assert report(recipe_of(tmp_path), "abc", whole[:4])["importances"] == {}
    found = report(recipe_of(tmp_path), "abc", whole)["importances"]
    assert set(found) == set(KEYS)
    assert sum(found.values()) == pytest.approx(1, abs=0.01)


def test_sweep_in_which_nothing_was_learnt_says_so(tmp_path: Path) -> None:
    found = report(recipe_of(tmp_path), "abc", [Row(0, CURRENT, "nothing learned", True, reason="flat <b>")])
    assert found["best"] is None
    assert "no trial ended with an adapter" in as_lines(found)
    assert "flat &lt;b&gt;" in page(found)


def test_page_shows_every_trial_on_every_key_and_loads_nothing(tmp_path: Path, whole: list[Row]) -> None:
    found = report(recipe_of(tmp_path), "abc", whole)
    text = page(found)
    assert text.count("<circle") == len(KEYS) * sum(row.state == "done" for row in whole)
    assert "http" not in text
    assert "<script" not in text


def test_settings_default_to_no_keys() -> None:
    assert SweepSettings().keys == {}
