"""What stays together in one step. (Stands in for the core's file until that is merged.)"""

from __future__ import annotations

from dataclasses import dataclass

from .rows import Row


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that stay together in one step."""

    id: str
    rows: tuple[Row, ...]
