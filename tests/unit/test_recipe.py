"""Promises of recipes: every fault at its place and at once, overrides, paths, and the schema for editors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from potstill.commands.look import schema_text
from potstill.commands.recipes import sections
from potstill.errors import RecipeError
from potstill.recipe import Recipe, load_recipe
from potstill.stage_finder import stage_modules
from potstill.yaml_positions import LocatedStr, read_positioned

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*/*.yaml"))
GOOD = """\
name: mail
task: {kind: classification, labels: [spam, ham]}
base_model: someone/model
distill:
  sources: [{path: log.jsonl}, {path: /logs/other.jsonl}]
train: {epochs: 2}
evaluate: {margin: 0.02}
register: {model: mail}
"""
Load = Callable[..., Recipe]
SECTIONS = sections(stage_modules())


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes a text as recipe.yaml and loads it with overrides."""

    def write_and_load(text: str, *overrides: str, name: str = "recipe.yaml") -> Recipe:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides, SECTIONS)

    return write_and_load


def faults_of(load: Load, text: str, *overrides: str) -> list[str]:
    """The faults of a recipe, with the folder left out."""
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return [each[each.index("recipe.yaml:") :] if "recipe.yaml:" in each else each for each in caught.value.faults]


def settings(recipe: Recipe, section: str) -> Any:
    found: BaseModel = recipe.sections[section]
    return found


def test_three_faults_are_reported_at_once_each_at_its_place(load: Load) -> None:
    text = GOOD.replace("train: {epochs: 2}", "train:\n  packign: true\n  learning_rate: 7\nsreve: {port: 8080}")
    assert faults_of(load, text) == [
        "recipe.yaml:7:3: train.packign: not a setting (did you mean packing?)",
        "recipe.yaml:8:3: train.learning_rate: found 7; input should be less than 1",
        "recipe.yaml:9:1: sreve: not a setting (did you mean serve?)",
    ]


def test_faults_of_task_and_sections_are_reported_together(load: Load) -> None:
    text = GOOD.replace("[spam, ham]", "[spam]").replace("epochs: 2", "epochs: 0")
    assert faults_of(load, text) == [
        "recipe.yaml:2:30: task.labels: found 1 labels, expected two or more, all different",
        "recipe.yaml:6:9: train.epochs: found 0; input should be greater than 0",
    ]


@pytest.mark.parametrize(
    ("wrong", "right", "fault"),
    [
        ("name: mail", "name: My Mail", "recipe.yaml:1:1: name: found 'My Mail'; string should match pattern"),
        ("epochs: 2", "epochs: many", "recipe.yaml:6:9: train.epochs: found 'many'; input should be a valid number"),
        ("epochs: 2", "epochs: 101", "recipe.yaml:6:9: train.epochs: found 101; input should be less than or equal"),
        ("epochs: 2", "packing: [1]", "recipe.yaml:6:9: train.packing: input should be a valid boolean"),
        ("epochs: 2", "metod: lora", "recipe.yaml:6:9: train.metod: not a setting (did you mean method?)"),
        ("epochs: 2", "zzz: 1", "recipe.yaml:6:9: train.zzz: not a setting"),
        (
            "epochs: 2",
            "method: qlorra",
            "recipe.yaml:6:9: train.method: found 'qlorra', expected 'qlora', 'lora' or 'full' (did",
        ),
        ("{epochs: 2}", "fast", "recipe.yaml:6:1: train: found 'fast', expected a mapping (any of objective,"),
        ("base_model: someone/model\n", "", "recipe.yaml:1:1: base_model: missing"),
        ("{path: log.jsonl}", "{}", "recipe.yaml:5:13: distill.sources.0.path: missing"),
        ("{path: log.jsonl}", "{path: a, pth: b}", "recipe.yaml:5:23: distill.sources.0.pth: not a setting (did you"),
        (
            "sources: [{path: log.jsonl}, {path: /logs/other.jsonl}]",
            "sources: []",
            "recipe.yaml:5:3: distill.sources: ",
        ),
        ("{kind: classification, labels: [spam, ham]}", "{kind: classification}", "recipe.yaml:2:1: task: classifica"),
        ("{kind: classification, labels: [spam, ham]}", "{kind: generation, labels: [a, b]}", "recipe.yaml:2:1: task:"),
        ("[spam, ham]", "labels.txt", "recipe.yaml:2:30: task.labels: "),
    ],
)
def test_one_fault_is_named_at_its_place(load: Load, wrong: str, right: str, fault: str) -> None:
    assert wrong in GOOD
    found = faults_of(load, GOOD.replace(wrong, right))
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_fault_in_one_form_of_a_setting_does_not_blame_the_other_form(load: Load) -> None:
    text = GOOD.replace("train: {epochs: 2}", "  split: {test: {wehre: {metadata.split: test}}}")
    assert faults_of(load, text) == [
        "recipe.yaml:6:18: distill.split.test.wehre: not a setting (did you mean where?)",
    ]


def test_key_given_twice_is_a_fault(load: Load) -> None:
    text = GOOD.replace("{epochs: 2}", "{epochs: 2, epochs: 3}") + "name: other\n"
    assert faults_of(load, text) == [
        "recipe.yaml:6:20: train.epochs: given twice",
        "recipe.yaml:9:1: name: given twice",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD + "a: b: c\n", "recipe.yaml:9:5: not YAML"),
        (GOOD + "a: [1,\n", "recipe.yaml:10:1: not YAML"),
        (GOOD + "? [a]\n: b\n", "recipe.yaml:9:3: not YAML: a key must be a single value"),
        (GOOD + "a: 2026-13-45\n", "recipe.yaml:9:4: not YAML: '2026-13-45' does not fit its type timestamp"),
        (GOOD + "a: !thing b\n", "recipe.yaml:9:4: not YAML"),
        ("- a list\n", "recipe.yaml:1:1: expected a mapping"),
    ],
)
def test_what_is_not_yaml_is_refused_at_its_place(load: Load, text: str, fault: str) -> None:
    found = faults_of(load, text)
    assert len(found) == 1
    assert found[0].startswith(fault)


@pytest.mark.parametrize("text", ["a: &x [*x]\n", "a: \x00\n", "[" * 5000])
def test_malicious_yaml_is_a_recipe_error(load: Load, text: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load(text)


@given(st.text(alphabet="ab1:-.,[]{}&*!?#'\"|>% \n\t\\", max_size=30))
def test_any_text_is_read_or_refused_with_its_file_named(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    faults: tuple[str, ...] = ()
    try:
        read_positioned(path)
    except RecipeError as fault:
        faults = fault.faults
    assert all(each.startswith(str(path)) for each in faults)


def test_missing_file_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml", (), SECTIONS)


@given(st.integers(-12, 12), st.integers(1, 99), st.sampled_from("eE"), st.booleans())
def test_numbers_with_an_exponent_are_numbers_without_a_dot_too(
    tmp_path_factory: pytest.TempPathFactory, exponent: int, digits: int, sign: str, dot: bool
) -> None:
    text = f"{digits}{'.0' if dot else ''}{sign}{exponent}"
    path = tmp_path_factory.getbasetemp() / "number.yaml"
    path.write_text(f"a: {text}\nb: '{text}'\n")
    data = read_positioned(path).data
    assert data["a"] == float(text)
    assert type(data["a"]) is float
    assert data["b"] == text


def test_learning_rate_as_people_write_it_is_a_number(load: Load) -> None:
    assert settings(load(GOOD.replace("epochs: 2", "learning_rate: 1e-4")), "train").learning_rate == 1e-4
    assert settings(load(GOOD, "train.learning_rate=2e-4"), "train").learning_rate == 2e-4


def test_overrides_set_dotted_keys_and_list_items_with_yaml_values(load: Load) -> None:
    recipe = load(
        GOOD,
        "train.epochs=3",
        "train.lora={rank: 8}",
        "train.packing=no",
        "distill.sources.1.path=/new.jsonl",
        "distill.sources.2={path: /third.jsonl}",
        "task.labels=[a, b, c]",
        "name=other",
        "evaluate.margin=0.05",
    )
    train = settings(recipe, "train")
    assert (train.epochs, train.lora.rank, train.packing) == (3.0, 8, False)
    assert [Path(each.path).name for each in settings(recipe, "distill").sources] == [
        "log.jsonl",
        "new.jsonl",
        "third.jsonl",
    ]
    assert recipe.shared.task_definition == {"kind": "classification", "labels": ["a", "b", "c"]}
    assert recipe.shared.name == recipe.shared.work_dir.name == "other"
    assert recipe.passed["evaluate"] == {"margin": 0.05}


def test_last_override_of_a_key_wins(load: Load) -> None:
    assert settings(load(GOOD, "train.epochs=3", "train.epochs=5"), "train").epochs == 5


def test_override_makes_a_section_that_the_recipe_leaves_out(load: Load) -> None:
    assert settings(load(GOOD, "serve.port=9123"), "serve").port == 9123


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("train.epoch=3", "command line: train.epoch=3: train.epoch: not a setting (did you mean epochs?)"),
        ("train.epochs=x", "command line: train.epochs=x: train.epochs: found 'x'; input should be a valid number"),
        ("train.epochs.deep=1", "command line: train.epochs.deep=1: train.epochs is a single value"),
        ("distill.sources.7.path=a", "command line: distill.sources.7.path=a: 7 is no item of distill.sources, which"),
        ("distill.sources.-1.path=a", "command line: distill.sources.-1.path=a: -1 is no item of distill.sources"),
        ("train.epochs", "command line: train.epochs: expected key.path=value"),
        ("=3", "command line: =3: expected key.path=value"),
        ("train.epochs=[", "command line: train.epochs=[: the value is not YAML"),
        ("train.epochs=2026-13-45", "command line: train.epochs=2026-13-45: the value is not YAML"),
    ],
)
def test_faulty_override_is_named_itself(load: Load, override: str, fault: str) -> None:
    found = faults_of(load, GOOD, override)
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_path_is_relative_to_where_it_was_written(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "standing" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    written = settings(load(GOOD), "distill").sources
    assert [each.path for each in written] == [str(tmp_path / "log.jsonl"), "/logs/other.jsonl"]
    given_here = settings(load(GOOD, "distill.sources.0.path=mine.jsonl"), "distill").sources
    assert given_here[0].path == str(here / "mine.jsonl")


def test_addresses_and_packages_are_no_paths(load: Load) -> None:
    recipe = load(GOOD.replace("log.jsonl", "s3://bucket/log.jsonl").replace("someone/model", "package:a/b.gguf"))
    assert settings(recipe, "distill").sources[0].path == "s3://bucket/log.jsonl"
    assert recipe.shared.base_model == "package:a/b.gguf"


def test_base_model_is_a_hub_id_unless_a_file_or_folder_is_meant(load: Load, tmp_path: Path) -> None:
    assert load(GOOD).shared.base_model == "someone/model"
    (tmp_path / "someone" / "model").mkdir(parents=True)
    assert load(GOOD).shared.base_model == str(tmp_path / "someone" / "model")
    assert load(GOOD.replace("someone/model", "m.gguf")).shared.base_model == str(tmp_path / "m.gguf")


def test_labels_come_from_a_list_or_a_file_beside_the_recipe(load: Load, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("spam\n\n  ham \n")
    from_file = load(GOOD.replace("[spam, ham]", "labels.txt"))
    assert from_file.shared.task_definition == load(GOOD).shared.task_definition


def test_extraction_schema_that_is_no_json_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{")
    text = GOOD.replace("{kind: classification, labels: [spam, ham]}", "{kind: extraction, schema: s.json}")
    (found,) = faults_of(load, text)
    assert found.startswith("recipe.yaml:2:")
    assert "is not JSON" in found


def test_read_settings_cannot_be_changed(load: Load) -> None:
    train = settings(load(GOOD), "train")
    with pytest.raises(ValueError, match="frozen"):
        train.epochs = 9


def test_strings_of_a_recipe_remember_their_folder(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [x, {b: y}]\n")
    data = read_positioned(tmp_path / "a.yaml").data
    for text in (data["a"][0], data["a"][1]["b"]):
        assert isinstance(text, LocatedStr)
        assert text.folder == tmp_path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_recipe_loads_and_fits_the_shipped_schema(path: Path) -> None:
    recipe = load_recipe(path, (), SECTIONS)
    assert set(recipe.sections) == set(SECTIONS)
    schema = json.loads((CONFIGS / "recipe.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    data = json.loads(json.dumps(read_positioned(path).data))
    assert [each.message for each in Draft202012Validator(schema).iter_errors(data)] == []
    assert list(Draft202012Validator(schema).iter_errors(data | {"trian": {}}))


def test_recipes_are_shipped() -> None:
    assert {path.parent.name for path in RECIPES} >= {"quickstart", "banking77", "restaurants8k", "tau_airline"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_shipped_recipe_names_the_schema_for_editors(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == CONFIGS / "recipe.schema.json"
    assert yaml.safe_load(path.read_text())["name"]


def test_committed_schema_is_current() -> None:
    committed = (CONFIGS / "recipe.schema.json").read_text()
    assert committed == schema_text(stage_modules()), "run `potstill schema --out configs/recipe.schema.json`"
