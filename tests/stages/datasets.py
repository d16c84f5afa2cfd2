"""Dataset folders as distillation leaves them, written by hand: small, and with just the rows that a test needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.dataset import write_examples
from potstill.manifest import write_manifest
from potstill.prompt import PromptRule
from potstill.records import Example


def write_rows(folder: Path, train: Sequence[Example], validation: Sequence[Example] = ()) -> Path:
    """The two open splits, made with the folder where it is not there; no manifest yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_examples(folder / "train.parquet", train)
    write_examples(folder / "validation.parquet", validation)
    return folder


def finish(folder: Path) -> Path:
    """Write the manifest: the folder is a finished dataset whose prompts were kept as they are."""
    facts = {"prompt_rule": PromptRule().to_json()}
    write_manifest(folder, "dataset", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    return folder


def dataset_folder(folder: Path, train: Sequence[Example], validation: Sequence[Example] = ()) -> Path:
    """A finished dataset of these rows."""
    return finish(write_rows(folder, train, validation))
