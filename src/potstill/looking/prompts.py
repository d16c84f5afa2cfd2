"""Prompts and answers as a page shows them: who said what, what the student sees of it, cut to a length.

A turn is {"role", "parts", "name"?, "calls"?}; a part is [whether the student sees it, its text]. Texts that many rows
share (standing instructions, tools) stand once, in `Texts`, and rows hold their number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from potstill.prompt import PromptRule, joined
from potstill.records import Json, Message

LONGEST_SHARED = 40_000  # characters of a text that stands once
SHORTEST_CUT = 240  # no text is cut to less


class Texts:
    """Texts that stand once, by number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(cut(text, LONGEST_SHARED), len(self._numbers))

    def all(self) -> list[str]:
        return list(self._numbers)


def cut(text: str, longest: int) -> str:
    """A text without its middle where it is longer than that, saying how much is not shown."""
    if len(text) <= longest:
        return text
    head = longest * 2 // 3
    return f"{text[:head]}\n[… {len(text) - longest:,} characters not shown …]\n{text[head - longest :]}"


def limit_for(texts: Sequence[str | None], budget: int) -> int:
    """How long a text of a row may be so that the row keeps to about `budget` characters."""
    lengths = [len(each) for each in texts if each]
    return budget if sum(lengths) <= budget else max(SHORTEST_CUT, budget // len(lengths))


def said(message: Message) -> str:
    """A message's text; parts that are none are named."""
    content = message.get("content")
    if isinstance(content, list):
        odd = [f"[{each.get('type')}]" for each in content if isinstance(each, dict) and each.get("type") != "text"]
        return "\n".join(each for each in (str(joined(content)).strip("\n"), *odd) if each)
    return content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)


def turns(messages: Sequence[Message], budget: int) -> list[Json]:
    """Messages as turns of which the student sees everything."""
    limit = limit_for([said(each) for each in messages], budget)
    return [_turn(each, [[True, cut(said(each), limit)]], limit) for each in messages]


def _turn(message: Message, parts: list[list[Any]], limit: int) -> Json:
    turn: Json = {"role": str(message.get("role")), "parts": [each for each in parts if each[1] != ""]}
    if message.get("name"):
        turn["name"] = str(message["name"])
    if calls := message.get("tool_calls"):
        turn["calls"] = [_call(each, limit) for each in calls]
    return turn


def _call(call: Any, limit: int) -> Json:
    function = call.get("function", call) if isinstance(call, dict) else {"name": str(call)}
    arguments = function.get("arguments", "")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"name": str(function.get("name")), "arguments": cut(text, limit)}


def compared(
    full: Sequence[Message], student: Sequence[Message], rule: PromptRule, texts: Texts, budget: int
) -> list[Json] | None:
    """The prompt as logged, its parts marked by whether the student sees them; None where the two cannot be matched.

    Matched from the end, because the newest turns are the ones that stay.
    """
    limit = limit_for([said(each) for each in student], budget)
    left, found = list(student), []
    for message in reversed(full):
        parts = _match(message, left[-1], rule, texts, limit) if left else None
        if parts is not None:
            left.pop()
        found.append(_turn(message, parts or [[False, texts.number(said(message))]], limit))
    return None if left else found[::-1]


def _match(message: Message, seen: Message, rule: PromptRule, texts: Texts, limit: int) -> list[list[Any]] | None:
    whole, kept = said(message), said(seen)
    if message.get("role") != seen.get("role") or message.get("tool_calls") != seen.get("tool_calls"):
        return None
    if whole == kept:
        return [[True, cut(kept, limit)]]
    for strip in rule.strips:
        if whole == strip.prefix + kept + strip.suffix:
            frame = [[False, texts.number(each)] if each else [False, ""] for each in (strip.prefix, strip.suffix)]
            return [frame[0], [True, cut(kept, limit)], frame[1]]
    return None
