"""What all tests share: training flushes subnormal numbers process-wide, and no later test may inherit that."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def subnormal_numbers_as_they_were() -> Iterator[None]:
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_flush_denormal(False)
