"""What `check` reads of a base: its config and tokenizer, never its weights."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from potstill import models
from potstill.errors import PotstillError
from potstill.stage import Shared
from tests.stages.datasets import dataset_folder
from tests.stages.test_training import LABELS, example, settings_with, shared_for, trained
from tests.stages.tiny_llama import tiny_base
from training import run
from training.full import parameters_of

HUB_ID = "nobody/tiny"


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a hub with one model leaves what is asked for of it."""
    whole, there = tmp_path / "hub", tmp_path / "downloaded"
    tiny_base(whole)
    (whole / "pytorch_model.bin").write_bytes(b"x")

    def snapshot(spec: str, allow_patterns: list[str]) -> str:
        assert spec == HUB_ID
        there.mkdir(exist_ok=True)
        for path in whole.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, there)
        return str(there)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return there


def test_a_preview_takes_no_weights_from_the_hub_and_training_does(downloaded: Path, tmp_path: Path) -> None:
    data = dataset_folder(tmp_path / "dataset", [example(at) for at in range(12)])
    shared = Shared("tiny", {"kind": "classification", "labels": LABELS}, HUB_ID, tmp_path / "work", "")
    shown = run.preview(settings_with(), shared, {"dataset": data})
    assert shown["rows"] == 12
    assert {"config.json", "tokenizer.json"} <= {path.name for path in downloaded.iterdir()}
    assert not [*downloaded.glob("*.safetensors"), *downloaded.glob("*.bin")]
    assert models.resolve_base(HUB_ID, tmp_path).path == downloaded
    assert [*downloaded.glob("*.safetensors")]


def test_a_preview_of_a_folder_reads_no_weights(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "tiny")
    (base.path / "model.safetensors").write_bytes(b"not to be read")
    data = dataset_folder(tmp_path / "dataset", [example(at) for at in range(12)])
    shared = Shared("tiny", {"kind": "classification", "labels": LABELS}, str(base.path), tmp_path / "work", "")
    assert run.preview(settings_with(), shared, {"dataset": data})["rows"] == 12


@pytest.mark.parametrize("changes", [{"epochs": 1.5, "batch_tokens": 128}, {"max_steps": 7}])
def test_a_preview_counts_the_steps_that_training_makes(tmp_path: Path, changes: dict[str, Any]) -> None:
    base = tiny_base(tmp_path / "tiny")
    data = dataset_folder(tmp_path / "dataset", [example(at) for at in range(40)])
    values: dict[str, Any] = {"score_rows": 0, "learning_rate": 0.02, **changes}
    shared = shared_for(base, tmp_path / "work")
    ahead = run.preview(settings_with(**values), shared, {"dataset": data})["forecast"]
    facts = trained(base, data, tmp_path / "out", **values)
    assert ahead["steps"] == facts["training"]["steps"]


def test_full_fine_tuning_of_a_base_too_large_for_a_processor_is_refused_by_its_config(
    downloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.resolve_tokenizer(HUB_ID, tmp_path)
    by_config = parameters_of(folder)
    assert by_config == parameters_of(models.resolve_base(HUB_ID, tmp_path).path)
    monkeypatch.setattr("training.full.MOST_ON_A_PROCESSOR", by_config - 1)
    data = dataset_folder(tmp_path / "dataset", [example(at) for at in range(12)])
    shared = Shared("tiny", {"kind": "classification", "labels": LABELS}, HUB_ID, tmp_path / "work", "")
    for path in downloaded.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(PotstillError, match="full on a processor"):
        run.preview(settings_with(method="full", learning_rate=1e-4), shared, {"dataset": data})
