"""Columns of the candidates' table that only some reports have, and the remarks below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.records import Json


def kl_of(candidates: Mapping[str, Json]) -> dict[str, float]:
    """KL divergence to the 16-bit model, in nats a token, of the files that it was measured for."""
    return _numbers(candidates, "kl")


def speeds_of(candidates: Mapping[str, Json]) -> dict[str, float]:
    """Tokens generated a second, of those that it was measured for."""
    return _numbers(candidates, "tokens_per_second")


def _numbers(candidates: Mapping[str, Json], key: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, entry in candidates.items():
        value: Any = entry.get(key)
        if isinstance(value, Mapping):
            value = next((value[each] for each in ("mean", "value", "median") if each in value), None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def further(candidates: Mapping[str, Json]) -> list[str]:
    """Names of the metrics beside the primary one, in their order."""
    names: dict[str, None] = {}
    for entry in candidates.values():
        for basis in ("quality", "agreement"):
            names |= dict.fromkeys((entry.get(basis) or {}).get("others") or {})
    return list(names)


def remarks_of(candidates: Mapping[str, Json]) -> list[str]:
    """Why answers are invalid, and how a cost was found or why not, in sentences."""
    remarks = []
    reasons: dict[str, list[str]] = {}
    for name, entry in candidates.items():
        if entry.get("invalid_reasons"):
            found = "; ".join(f"{each['n']} × {each['reason']}" for each in entry["invalid_reasons"])
            remarks.append(f"{name}, invalid answers: {found}")
        cost = entry.get("cost") or {}
        said = "; ".join(str(each) for each in (cost.get("basis"), cost.get("reason")) if each)
        if said:
            reasons.setdefault(said, []).append(name)
    return remarks + [f"Cost of {', '.join(names)}: {said}" for said, names in reasons.items()]
