"""Extraction: one JSON object of a schema; scored whole (exact) and by slot (micro F1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.errors import RecipeError
from potstill.records import Json, Message
from potstill.tasks.base import Constraint, Metric, Parsed
from potstill.tasks.json_forms import form

SLOT_F1 = Metric("slot_f1", {"tp": 2.0}, {"tp": 2.0, "fp": 1.0, "fn": 1.0})
EXACT = Metric("exact", {"exact": 1.0})


@dataclass(frozen=True)
class Extraction:
    """The object's top-level properties are the slots; keys are written in the schema's order.

    Values are equal when they are as JSON (`json_forms`): 1 and 1.0 are, "1" and 1 are not. An invalid answer counts as
    an empty object for the slots (every gold slot missed) and as not exact.
    """

    schema: Json
    kind: str = "extraction"
    metrics: Sequence[Metric] = (SLOT_F1, EXACT)
    _check: Any = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        from jsonschema import Draft202012Validator, SchemaError

        if self.schema.get("type") != "object" or not isinstance(self.schema.get("properties"), dict):
            raise RecipeError(["task.schema: expected a JSON Schema of type object with properties"])
        try:
            Draft202012Validator.check_schema(self.schema)
        except SchemaError as fault:
            raise RecipeError([f"task.schema: not a JSON Schema: {fault.message}"]) from fault
        object.__setattr__(self, "_check", Draft202012Validator(self.schema))

    def text_of(self, message: Message) -> str:
        content = message.get("content")
        return content if isinstance(content, str) else ""

    def message_of(self, text: str) -> Message:
        parsed = self.parse(text)
        return {"role": "assistant", "content": self.canonical(parsed.value) if parsed.valid else text}

    def parse(self, text: str, tools: Sequence[Json] = ()) -> Parsed:
        body = text.strip()
        if body.startswith("```"):
            body = body.strip("`").removeprefix("json").strip()
        try:
            value = json.loads(body)
        except ValueError as fault:
            return Parsed(reason=f"not JSON: {fault}")
        return self._validated(value)

    def _validated(self, value: Any) -> Parsed:
        fault = next(iter(self._check.iter_errors(value)), None)
        return Parsed(value) if fault is None else Parsed(reason=f"{fault.json_path}: {fault.message}"[:200])

    def canonical(self, value: Any) -> str:
        order = list(self.schema["properties"])
        ranked = sorted(value, key=lambda key: (order.index(key) if key in order else len(order), key))
        return json.dumps({key: value[key] for key in ranked}, ensure_ascii=False, separators=(",", ":"))

    def from_gold(self, answer: Any) -> Parsed:
        return self.parse(answer) if isinstance(answer, str) else self._validated(answer)

    def score(self, value: Any | None, gold: Any) -> dict[str, float]:
        found = {key: form(each) for key, each in (value or {}).items()}
        wanted = {key: form(each) for key, each in gold.items()}
        hits = sum(1 for key, each in found.items() if wanted.get(key) == each)
        return {
            "tp": float(hits),
            "fp": float(len(found) - hits),
            "fn": float(len(wanted) - hits),
            "exact": float(value is not None and found == wanted),
        }

    def constraint(self) -> Constraint | None:
        return Constraint("json_schema", schema=self.schema)

    def describe(self) -> Json:
        return {"kind": self.kind, "schema": self.schema}
