"""Where the traffic logs are that tests use and the repository does not ship."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_log(name: str) -> Path:
    """The log of this name in $POTSTILL_TRAFFIC or in shared/traffic beside the checkout; skips the test without it."""
    folder = Path(os.environ.get("POTSTILL_TRAFFIC") or ROOT.parent / "shared" / "traffic")
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not in {folder}; say where it is by POTSTILL_TRAFFIC")
    return folder / name
