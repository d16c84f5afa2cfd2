"""Reasons for which rows are left out of a dataset: what `distill` counts and `look` groups by."""

from __future__ import annotations

TWINS = ("near-duplicate of", "exact duplicate of", "semantic duplicate of")


def kind_of(step: str, reason: str) -> str:
    """A reason without what is the row's own, as the manifest counts them: what stands before a colon, no ids."""
    head = reason.partition(":")[0]
    twin = next((each for each in TWINS if head.startswith(each)), None)
    return f"{step}: {f'{twin} a kept row' if twin else head}"
