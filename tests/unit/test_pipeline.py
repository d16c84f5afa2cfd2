"""The pipeline: what is unchanged is skipped, what changed is said, what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.errors import ManifestMismatch, PotstillError
from potstill.manifest import Input, sha256_file
from potstill.pipeline import locked, newest, plan_stage, run_pipeline
from potstill.recipe import Recipe, Section, load_recipe

RECIPE = """\
name: tiny
task: {kind: generation}
base_model: some/base
distill: {source: log.txt}
train: {epochs: 1}
evaluate: {margin: 0.02}
"""


class Distill(Section):
    source: str = "log.txt"


class Train(Section):
    epochs: int = 1


class Evaluate(Section):
    margin: float = 0.02


def stages(folder: Path, calls: list[str]) -> dict[str, Any]:
    """Three stages that copy what they read, and note that they ran."""

    def distill_inputs(settings: Any, shared: Any) -> list[Input]:
        path = folder / settings.source
        return [Input("traffic", str(path), sha256_file(path))]

    def distill(settings: Any, shared: Any, upstream: Any, out: Path) -> Any:
        calls.append("distill")
        (out / "rows.txt").write_text((folder / settings.source).read_text())
        return {}

    def train(settings: Any, shared: Any, upstream: Any, out: Path) -> Any:
        calls.append("resumed train" if (out / "checkpoint").exists() else "train")
        if (folder / "fail").exists():
            (out / "checkpoint").write_text("half")
            raise PotstillError("power cut")
        (out / "weights.txt").write_text((upstream["dataset"] / "rows.txt").read_text() * settings.epochs)
        return {}

    def evaluate(settings: Any, shared: Any, upstream: Any, out: Path) -> Any:
        calls.append("evaluate")
        (out / "report.json").write_text("{}")
        return {"gate": {"passed": True, "reasons": ["good"]}}

    def nothing(settings: Any, shared: Any) -> list[Input]:
        return []

    return {
        "distill": SimpleNamespace(NOUN="dataset", NEEDS=(), Settings=Distill, inputs=distill_inputs, main=distill),
        "train": SimpleNamespace(NOUN="adapter", NEEDS=("dataset",), Settings=Train, inputs=nothing, main=train),
        "evaluate": SimpleNamespace(
            NOUN="report", NEEDS=("dataset", "adapter"), Settings=Evaluate, inputs=nothing, main=evaluate
        ),
    }


class Bench:
    """A recipe with its stages in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[str]()
        (folder / "recipe.yaml").write_text(RECIPE)
        (folder / "log.txt").write_text("one\n")
        self.stages = stages(folder, self.calls)

    def recipe(self, *overrides: str) -> Recipe:
        sections = {name: module.Settings for name, module in self.stages.items()}
        return load_recipe(self.folder / "recipe.yaml", [f"work_dir={self.folder}/work", *overrides], sections)

    def run(self, *overrides: str) -> Any:
        self.calls.clear()
        return run_pipeline(self.recipe(*overrides), self.stages, "evaluate", track=False)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_second_run_skips_every_stage(bench: Bench) -> None:
    first = bench.run()
    assert bench.calls == ["distill", "train", "evaluate"]
    second = bench.run()
    assert bench.calls == []
    assert all(
        second[noun]["skipped"] and second[noun]["why"] == "unchanged" for noun in ("dataset", "adapter", "report")
    )
    assert [second[noun]["digest"] for noun in ("dataset", "adapter")] == [
        first[noun]["digest"] for noun in ("dataset", "adapter")
    ]


def test_changed_setting_remakes_its_stage_and_what_follows_and_says_why(bench: Bench) -> None:
    bench.run()
    outcome = bench.run("train.epochs=3")
    assert bench.calls == ["train", "evaluate"]
    assert outcome["adapter"]["why"] == "epochs 1 -> 3"
    assert outcome["report"]["why"].startswith("adapter ")


def test_changed_log_remakes_everything(bench: Bench) -> None:
    bench.run()
    (bench.folder / "log.txt").write_text("two\n")
    outcome = bench.run()
    assert bench.calls == ["distill", "train", "evaluate"]
    assert outcome["dataset"]["why"] == "traffic log.txt is new or changed"


def test_going_back_to_old_settings_finds_the_old_folders(bench: Bench) -> None:
    bench.run()
    bench.run("train.epochs=3")
    bench.run()
    assert bench.calls == []


def test_unfinished_training_is_continued_not_begun_anew(bench: Bench) -> None:
    (bench.folder / "fail").touch()
    with pytest.raises(PotstillError, match="power cut"):
        bench.run()
    (bench.folder / "fail").unlink()
    bench.run()
    assert bench.calls == ["resumed train", "evaluate"]


def test_flipped_byte_in_a_finished_folder_is_refused_by_name(bench: Bench) -> None:
    path = Path(bench.run()["dataset"]["path"]) / "rows.txt"
    path.write_text("onE\n")
    with pytest.raises(ManifestMismatch, match=r"rows\.txt: sha256 .*, expected "):
        bench.run()


def test_second_potstill_on_the_same_recipe_is_refused(bench: Bench) -> None:
    bench.run()
    with locked(bench.recipe().shared.work_dir), pytest.raises(PotstillError, match="another potstill is at work"):
        bench.run()


def test_plan_without_upstream_says_what_comes_first(bench: Bench) -> None:
    plan = plan_stage(bench.recipe(), "train", bench.stages["train"], {"dataset": None})
    assert not plan.done
    assert plan.why == "a new dataset comes first"


def test_manifest_keeps_settings_as_passed_and_as_used(bench: Bench) -> None:
    folder = Path(bench.run("train.epochs=2")["adapter"]["path"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings_passed"]["epochs"] == 2
    assert "train.epochs=2" in manifest["settings_passed"]["overrides"]
    assert manifest["settings_used"]["settings"] == {"epochs": 2}
    assert manifest["inputs"][-1]["role"] == "dataset"
    assert newest(bench.recipe().shared.work_dir, "adapter") == folder
