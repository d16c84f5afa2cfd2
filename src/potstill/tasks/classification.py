"""Classification: exactly one label out of a closed set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.errors import RecipeError
from potstill.records import Json, Message
from potstill.tasks.base import Constraint, Metric, Parsed

_SURROUNDINGS = " \t\r\n\"'`*."


@dataclass(frozen=True)
class Classification:
    """Labels are compared exactly; quotes, emphasis and a full stop around an answer are forgiven.

    Case is forgiven too when it leaves one candidate (a log's 'refund_not_showing_up' is the label
    'Refund_not_showing_up'), never when two labels differ by case alone.
    """

    labels: tuple[str, ...]
    kind: str = "classification"
    metrics: Sequence[Metric] = (Metric("accuracy", {"correct": 1.0}),)
    _folded: dict[str, str | None] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise RecipeError([f"task.labels: found {len(self.labels)} labels, expected two or more, all different"])
        if any(not label.strip() or label != label.strip() for label in self.labels):
            raise RecipeError(["task.labels: found an empty label or one with spaces around it; remove it"])
        for label in self.labels:
            key = label.strip(_SURROUNDINGS).casefold()
            self._folded[key] = None if key in self._folded else label

    def text_of(self, message: Message) -> str:
        content = message.get("content")
        return content if isinstance(content, str) else ""

    def message_of(self, text: str) -> Message:
        parsed = self.parse(text)
        return {"role": "assistant", "content": parsed.value if parsed.valid else text}

    def parse(self, text: str, tools: Sequence[Json] = ()) -> Parsed:
        stripped = text.strip()
        if stripped in self.labels:
            return Parsed(stripped)
        label = self._folded.get(stripped.strip(_SURROUNDINGS).casefold())
        if label is not None:
            return Parsed(label)
        return Parsed(reason=f"not one of the {len(self.labels)} labels: {stripped[:60]!r}")

    def canonical(self, value: Any) -> str:
        return str(value)

    def from_gold(self, answer: Any) -> Parsed:
        if not isinstance(answer, str):
            return Parsed(reason=f"a label is text; found {type(answer).__name__}")
        return self.parse(answer)

    def score(self, value: Any | None, gold: Any) -> dict[str, float]:
        return {"correct": float(value is not None and value == gold)}

    def constraint(self) -> Constraint | None:
        return Constraint("choices", choices=self.labels)

    def describe(self) -> Json:
        return {"kind": self.kind, "labels": list(self.labels)}
