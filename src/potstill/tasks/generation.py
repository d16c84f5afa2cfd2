"""Generation: free text. Scored by token overlap with the reference."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.records import Json, Message
from potstill.tasks.base import Constraint, Metric, Parsed

_WORD = re.compile(r"\w+", re.UNICODE)


@dataclass(frozen=True)
class Generation:
    """`token_f1`: per-row harmonic mean of word precision and recall (Rajpurkar et al. 2016, SQuAD), averaged."""

    kind: str = "generation"
    metrics: Sequence[Metric] = (Metric("token_f1", {"token_f1": 1.0}), Metric("exact", {"exact": 1.0}))

    def text_of(self, message: Message) -> str:
        content = message.get("content")
        return content if isinstance(content, str) else ""

    def message_of(self, text: str) -> Message:
        return {"role": "assistant", "content": text}

    def parse(self, text: str, tools: Sequence[Json] = ()) -> Parsed:
        return Parsed(text.strip()) if text.strip() else Parsed(reason="empty answer")

    def canonical(self, value: Any) -> str:
        return str(value)

    def from_gold(self, answer: Any) -> Parsed:
        if not isinstance(answer, str):
            return Parsed(reason=f"a text is expected; found {type(answer).__name__}")
        return self.parse(answer)

    def score(self, value: Any | None, gold: Any) -> dict[str, float]:
        found = Counter(_WORD.findall((value or "").casefold()))
        wanted = Counter(_WORD.findall(gold.casefold()))
        shared = sum((found & wanted).values())
        total = sum(found.values()) + sum(wanted.values())
        return {"token_f1": 2 * shared / total if total else float(value == gold), "exact": float(value == gold)}

    def constraint(self) -> Constraint | None:
        return None

    def describe(self) -> Json:
        return {"kind": self.kind}
