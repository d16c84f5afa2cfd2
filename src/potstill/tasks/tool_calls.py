"""Tool calls: the next assistant turn of an agent, either calls with arguments or plain words.

The canonical text wraps each call as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (the Hermes form,
which Qwen's and many others' templates write), so that one text holds whatever the turn was.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from potstill.records import Json, Message, sha_id
from potstill.tasks.base import Constraint, Metric, Parsed
from potstill.tasks.json_forms import form

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class ToolCalls:
    """`exact`: call or no call, function and arguments all right (words are not compared); the parts apart.

    The value is `{"calls": [{"name", "arguments"}], "content": words or None}`. Arguments are equal when they are as
    JSON (`json_forms`): 1 and 1.0 are, "1" and 1 are not, whatever a schema would make of them, since the function
    would be called with something else. The order of parallel calls does not count; their number does.
    """

    kind: str = "tool_calls"
    metrics: Sequence[Metric] = (
        Metric("exact", {"exact": 1.0}),
        Metric("call_or_not", {"decision": 1.0}),
        Metric("function", {"function": 1.0}, {"gold_calls": 1.0}),
        Metric("arguments", {"arguments": 1.0}, {"gold_calls": 1.0}),
    )

    def text_of(self, message: Message) -> str:
        parts = [content] if isinstance(content := message.get("content"), str) and content else []
        for call in message.get("tool_calls") or []:
            function = call.get("function") or {}
            arguments = function.get("arguments", "{}")
            with suppress(ValueError):  # what is no JSON stays text, which parse() then refuses
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            body = json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False)
            parts.append(f"<tool_call>{body}</tool_call>")
        return "\n".join(parts)

    def message_of(self, text: str) -> Message:
        parsed = self.parse(text)
        if not parsed.valid or not parsed.value["calls"]:
            return {"role": "assistant", "content": text}
        calls = [
            {
                "id": f"call_{sha_id([at, call])}",
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": json.dumps(call["arguments"], ensure_ascii=False),
                },
            }
            for at, call in enumerate(parsed.value["calls"])
        ]
        return {"role": "assistant", "content": parsed.value["content"], "tool_calls": calls}

    def parse(self, text: str, tools: Sequence[Json] = ()) -> Parsed:
        calls = []
        for body in _CALL.findall(text):
            try:
                call = json.loads(body)
            except ValueError as fault:
                return Parsed(reason=f"tool call is not JSON: {fault}")
            reason = _fault_of(call, tools)
            if reason:
                return Parsed(reason=reason)
            calls.append({"name": call["name"], "arguments": call["arguments"]})
        words = _CALL.sub("", text).strip()
        if "<tool_call>" in words or "</tool_call>" in words:
            return Parsed(reason="a tool call is not closed")
        if not calls and not words:
            return Parsed(reason="empty: neither a tool call nor words")
        return Parsed({"calls": calls, "content": words or None})

    def canonical(self, value: Any) -> str:
        parts = [value["content"]] if value["content"] else []
        for call in value["calls"]:
            body = {"name": call["name"], "arguments": call["arguments"]}
            parts.append(f"<tool_call>{json.dumps(body, ensure_ascii=False)}</tool_call>")
        return "\n".join(parts)

    def from_gold(self, answer: Any) -> Parsed:
        if isinstance(answer, str):
            return self.parse(answer)
        if isinstance(answer, dict) and "role" in answer:
            return self.parse(self.text_of(answer))
        if isinstance(answer, dict) and set(answer) == {"calls", "content"}:
            return self.parse(self.canonical(answer))
        return Parsed(reason="expected text, an assistant message, or {calls, content}")

    def score(self, value: Any | None, gold: Any) -> dict[str, float]:
        found = value["calls"] if value else []
        wanted = gold["calls"]
        decision = value is not None and bool(found) == bool(wanted)
        names, named = (Counter(call["name"] for call in each) for each in (found, wanted))
        calls, gold_calls = (Counter(_form(call) for call in each) for each in (found, wanted))
        return {
            "exact": float(decision and calls == gold_calls),
            "decision": float(decision),
            "function": float((names & named).total()),
            "arguments": float((calls & gold_calls).total()),
            "gold_calls": float(len(wanted)),
        }

    def constraint(self) -> Constraint | None:
        return None

    def describe(self) -> Json:
        return {"kind": self.kind}


def _fault_of(call: Any, tools: Sequence[Json]) -> str | None:
    """Why this call may not be made: its shape, an unknown function, arguments outside the tool's schema."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return "tool call has no name"
    if not isinstance(call.get("arguments"), dict):
        return f"arguments of {call['name']}: expected an object"
    if not tools:
        return None
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    if call["name"] not in schemas:
        return f"unknown function {call['name']!r}; offered were {', '.join(sorted(schemas))}"
    from jsonschema import Draft202012Validator

    fault = next(iter(Draft202012Validator(schemas[call["name"]]).iter_errors(call["arguments"])), None)
    return None if fault is None else f"arguments of {call['name']}: {fault.json_path}: {fault.message}"[:200]


def _form(call: Json) -> str:
    return form([call["name"], call["arguments"]])
