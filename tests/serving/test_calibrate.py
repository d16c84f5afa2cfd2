"""Promises of `potstill calibrate`, with the real engine: validation rows alone, found again, refused for another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import httpx
import pytest
import yaml

from potstill.calibration.record import Calibration
from potstill.cli import main
from potstill.dataset import write_examples
from potstill.manifest import Input, write_manifest
from potstill.records import Example
from potstill.serving.run import running_server
from potstill.serving.settings import ServeSettings

from .conftest import LABELS

TEXTS = {"positive": "I love it, number {}", "negative": "It is awful, number {}", "neutral": "It is number {}"}


def examples(split: str) -> list[Example]:
    rows = []
    for label, text in TEXTS.items():
        for at in range(10):
            messages = [{"role": "user", "content": text.format(at)}]
            rows.append(
                Example(f"{split}-{label}-{at}", f"{split}{label}{at}", messages, messages, label, label, label)
            )
    return rows


@pytest.fixture(scope="module")
def place(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a dataset, an artifact that was made of it, and a recipe."""
    place = tmp_path_factory.mktemp("calibrate")
    work = place / "work" / "mood"
    dataset = work / "dataset-1234567890"
    for split in ("train", "validation"):
        write_examples(dataset / f"{split}.parquet", examples(split))
    write_examples(dataset / "sealed" / "test.parquet", examples("test"))
    made = write_manifest(dataset, "dataset", settings_passed={}, settings_used={}, inputs=[], facts={})
    (dataset / "sealed" / "test.parquet").chmod(0)  # whoever reads it fails, unless root runs the tests
    exported = work / "artifact-1234567890"
    shutil.copytree(artifact, exported, copy_function=os.link, ignore=shutil.ignore_patterns("manifest.json"))
    facts = {"formats": {"gguf-q4_1": {"file": "model-q4_1.gguf"}}}
    inputs = [Input("dataset", str(dataset), made.digest)]
    write_manifest(exported, "artifact", settings_passed={}, settings_used={}, inputs=inputs, facts=facts)
    recipe = {
        "name": "mood",
        "task": {"kind": "classification", "labels": list(LABELS)},
        "base_model": "none",
        "work_dir": str(place / "work"),
        "distill": {"sources": [{"format": "openai_pairs", "path": "log.jsonl"}]},
        "serve": {"threads": 1, "slots": 2},
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return place


def test_a_calibration_is_made_from_validation_rows_and_served_with(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["calibrate", str(place / "recipe.yaml"), "--alpha", "0.3", "--learned", "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    folder = Path(facts["folder"])
    assert folder.parent == place / "work" / "mood"
    found = Calibration.read(folder)
    assert (len(found.points), found.score, found.bound.alpha) == (30, "label", 0.3)
    assert all(0 < score <= 1 for score, _ in found.points)
    assert 0 < sum(loss for _, loss in found.points) < 30
    assert found.learned is not None
    assert len(found.routed) == 15
    assert not any(word in (folder / "calibration.json").read_text() for word in ("love", "validation-"))
    assert "at most 0.3 in the mean" in facts["promise"]

    assert main(command) == 0  # stands already: nothing is asked again
    assert json.loads(capsys.readouterr().out) == facts

    artifact = place / "work" / "mood" / "artifact-1234567890"
    settings = ServeSettings.model_validate(
        {
            "port": 0, "threads": 1, "capture": None, "large": {"url": "http://127.0.0.1:9/v1", "model": "big"},
            "escalate": {"calibration": str(folder.parent)},
        }
    )  # fmt: skip
    with running_server(artifact, settings, "mood", place / "captured") as server:
        body = {"model": "mood", "messages": examples("validation")[0].messages, "logprobs": True}
        answer = httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=60)
    choice = answer.json()["choices"][0]
    labels = choice["logprobs"]["label_probabilities"]
    assert answer.headers["x-potstill-answered-by"] == "engine"  # the large model is away: fail open
    assert labels[choice["message"]["content"]] == pytest.approx(found.points[0][0], abs=0.02)
    assert choice["logprobs"]["confidence"] == pytest.approx(float(answer.headers["x-potstill-confidence"]), abs=1e-4)


def test_too_few_rows_and_a_dataset_that_changed_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(place / "recipe.yaml")
    assert main(["calibrate", recipe, "--rows", "10"]) == 1
    assert "expected at least 20" in capsys.readouterr().err
    assert main(["calibrate", recipe, "--against", "gold"]) == 2
    assert main(["calibrate", recipe, "--of", "kept"]) == 2
    moved = place / "work" / "mood" / "dataset-1234567890"
    moved.rename(moved.with_name("dataset-gone"))
    assert main(["calibrate", recipe, "--alpha", "0.2"]) == 1
    assert "is not there as it was" in capsys.readouterr().err
    moved.with_name("dataset-gone").rename(moved)
