"""Feedback that came later than its exchange, joined to it: one meaning for serving (which writes it) and `distill`.

Exchanges stand in `exchanges-*.jsonl`, feedback beside them in `feedback-*.jsonl`, `{"id", "feedback": {...}}` a line.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Generic, TypeVar

from potstill.errors import DamagedLine
from potstill.records import Exchange, Feedback

EXCHANGES = "exchanges-*.jsonl"
FEEDBACK = "feedback-*.jsonl"
Place = TypeVar("Place")


def read_feedback_line(data: object) -> tuple[str, Feedback]:
    """The id of the exchange and the opinion; raises DamagedLine for anything else."""
    if not isinstance(data, dict):
        raise DamagedLine(f"not a feedback line: found {type(data).__name__}, expected an object")
    if not isinstance(data.get("id"), str) or not data["id"]:
        raise DamagedLine(f"not a feedback line: id: found {data.get('id')!r}, expected the id of an exchange")
    try:
        return data["id"], Feedback.from_json(data.get("feedback"))
    except DamagedLine as fault:
        raise DamagedLine(f"not a feedback line: {fault}") from fault


class LaterFeedback(Generic[Place]):
    """Opinions by exchange, each with the place that it came from."""

    def __init__(self) -> None:
        self._opinions: dict[str, list[tuple[Feedback, Place]]] = {}

    def add(self, identity: str, opinion: Feedback, place: Place) -> None:
        self._opinions.setdefault(identity, []).append((opinion, place))

    def join(self, exchange: Exchange) -> Exchange:
        """The exchange with what was said later, in the order of time (of arrival where times are equal or none)."""
        found = self._opinions.get(exchange.id)
        if found is None:
            return exchange
        later = sorted((opinion for opinion, _ in found), key=lambda each: each.time or "")
        return replace(exchange, feedback=(*exchange.feedback, *later))
