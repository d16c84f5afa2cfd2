"""What unit tests share: quick generated examples, and distilling without a tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from distillation.run import main
from potstill.records import Json
from potstill.stage import Shared

from .mail_log import LABELS, Whole, settings_for, write_log

# Unit tests stay quick: fewer examples than the default, and no deadline on a busy machine.
hypothesis.settings.register_profile("unit", max_examples=50, deadline=None)
hypothesis.settings.load_profile("unit")


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    task = {"kind": "classification", "labels": LABELS}
    return Shared("mail", task, str(base), tmp_path / "work" / "mail", "sqlite:///unused.db")


@pytest.fixture
def whole(tmp_path: Path, shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Whole:
    """Distils lines (or a log file) into a new folder; returns the facts and the folder."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as where only the core is installed

    def distil(lines: Iterable[Json | str] | Path, **changes: Any) -> tuple[Json, Path]:
        count = sum(1 for _ in tmp_path.glob("out*"))
        log = lines if isinstance(lines, Path) else write_log(tmp_path / f"log{count}.jsonl", lines)
        out = tmp_path / f"out{count}"
        out.mkdir()
        return main(settings_for(log, **changes), shared, {}, out), out

    return distil
