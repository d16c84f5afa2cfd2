"""Generation: free text. Scored by token overlap with the reference; SQL, where a database is given, by its result."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.records import Json, Message
from potstill.tasks.base import Constraint, Metric, Parsed
from potstill.tasks.sql import SqlDatabase, is_ordered, same_result, without_fence

_WORD = re.compile(r"\w+", re.UNICODE)
TEXT_METRICS = (Metric("token_f1", {"token_f1": 1.0}), Metric("exact", {"exact": 1.0}))
SQL_METRICS = (Metric("execution_match", {"execution": 1.0}), Metric("executes", {"executes": 1.0}))


@dataclass(frozen=True)
class Generation:
    """`token_f1`: per-row harmonic mean of word precision and recall (Rajpurkar et al. 2016, SQuAD), averaged.

    With `sql` the answer is a query, and `execution_match` comes first: it returns the rows of the reference, in its
    order where that says ORDER BY (execution accuracy, Yu et al. 2018, Spider). Gold that fails is invalid.
    """

    kind: str = "generation"
    metrics: Sequence[Metric] = TEXT_METRICS
    sql: SqlDatabase | None = None

    def __post_init__(self) -> None:
        if self.sql is not None and self.metrics == TEXT_METRICS:
            object.__setattr__(self, "metrics", SQL_METRICS + TEXT_METRICS)

    def text_of(self, message: Message) -> str:
        content = message.get("content")
        return content if isinstance(content, str) else ""

    def message_of(self, text: str) -> Message:
        return {"role": "assistant", "content": text}

    def parse(self, text: str, tools: Sequence[Json] = ()) -> Parsed:
        value = without_fence(text) if self.sql else text.strip()
        return Parsed(value) if value else Parsed(reason="empty answer")

    def canonical(self, value: Any) -> str:
        return str(value)

    def from_gold(self, answer: Any) -> Parsed:
        if not isinstance(answer, str):
            return Parsed(reason=f"a text is expected; found {type(answer).__name__}")
        parsed = self.parse(answer)
        if self.sql is not None and parsed.valid and (fault := self.sql.run(parsed.value).error):
            return Parsed(reason=f"the query fails: {fault}")
        return parsed

    def score(self, value: Any | None, gold: Any) -> dict[str, float]:
        return {**self._overlap(value, gold), **(self._execution(value, gold) if self.sql else {})}

    def _execution(self, value: Any | None, gold: Any) -> dict[str, float]:
        assert self.sql is not None
        if value is None:
            return {"execution": 0.0, "executes": 0.0}
        found = self.sql.run(value)
        same = same_result(found, self.sql.run(gold), is_ordered(gold))
        return {"execution": float(same), "executes": float(found.error is None)}

    def _overlap(self, value: Any | None, gold: Any) -> dict[str, float]:
        found = Counter(_WORD.findall((value or "").casefold()))
        wanted = Counter(_WORD.findall(gold.casefold()))
        shared = sum((found & wanted).values())
        total = sum(found.values()) + sum(wanted.values())
        return {"token_f1": 2 * shared / total if total else float(value == gold), "exact": float(value == gold)}

    def constraint(self) -> Constraint | None:
        return None

    def describe(self) -> Json:
        return {"kind": self.kind, **({"sql": self.sql.describe()} if self.sql else {})}
