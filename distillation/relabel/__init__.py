"""Relabel: chosen rows asked again, of any teacher that speaks OpenAI's API, for no more money than the recipe allows.

Each row gets `samples` answers; a vote or a judge decides. Every answer that was paid for stays in a ledger beside the
dataset, so that a second run, a killed one, or one with a larger budget pays only for what is missing.
"""

from __future__ import annotations

from .decide import relabel
from .rows import Relabelled, RelabelRow
from .settings import Price, Relabel, Teacher

__all__ = ["Price", "Relabel", "RelabelRow", "Relabelled", "Teacher", "relabel"]
