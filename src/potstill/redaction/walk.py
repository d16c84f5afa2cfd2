"""Every text in an exchange, with the place where its redacted form goes."""

from __future__ import annotations

from typing import Any

from potstill.prompt import INSTRUCTING
from potstill.records import Json

INSTRUCTION, KEY, NUMBER, OWNER, SAID = 1, 2, 4, 8, 16
_SHORTEST = 6  # characters: a@b.de, ::1234
_PLAIN_KEY = 15  # a shorter key that is an identifier is a field's name; an IBAN or an API key is longer
_FIELDS = frozenset({"role", "content", "type", "text", "index", "message", "finish_reason", "completion_tokens",
                     "prompt_tokens_details", "completion_tokens_details", "system_fingerprint"})  # fmt: skip
_SAID_UNDER = frozenset({"content", "text", "arguments", "value", "by", "tags", "user"})  # where people may be named


# A text under parent[place], and what it is: the parent, the place, the text, the flags above. A bare tuple is quick.
Leaf = tuple[Any, Any, str, int]


def leaves(exchange: Json) -> list[Leaf]:
    """The texts of an exchange, those of instructions first, dictionary keys last. Its id, time and split are none."""
    first: list[Leaf] = []
    rest: list[Leaf] = []
    last: list[Leaf] = []
    request = exchange.get("request")
    if isinstance(request, dict):
        for name, each in request.items():
            if name == "messages" and isinstance(each, list):
                for message in each:
                    standing = isinstance(message, dict) and message.get("role") in INSTRUCTING
                    walk([message], INSTRUCTION if standing else 0, first if standing else rest, last)
            elif name in ("tools", "functions") and isinstance(each, list):
                walk(each, INSTRUCTION, first, last)
            elif isinstance(each, dict | list):
                walk(each, 0, rest, last)
            elif isinstance(each, str):
                rest.append((request, name, each, 0))
    for name in ("response", "feedback"):
        if isinstance(exchange.get(name), dict | list):
            walk(exchange[name], 0, rest, last)
    metadata = exchange.get("metadata")
    if isinstance(metadata, dict):
        walk({name: each for name, each in metadata.items() if isinstance(each, dict | list)}, 0, rest, last)
        for name, each in metadata.items():
            if isinstance(each, str) and name != "split":
                rest.append((metadata, name, each, OWNER if name in ("user", "conversation") else 0))
    return [*first, *rest, *last]


def walk(value: Any, marks: int, found: list[Leaf], keys: list[Leaf]) -> None:
    """Append the texts below a dictionary or list to `found`, and keys that are no field names to `keys`."""
    if type(value) is dict:
        for name, each in value.items():
            kind = type(each)
            if kind is str:
                if len(each) >= _SHORTEST:
                    found.append((value, name, each, marks | SAID if name in _SAID_UNDER else marks))
            elif kind is dict or kind is list:
                walk(each, marks | SAID if name in _SAID_UNDER else marks, found, keys)
            elif kind is int and 10**14 <= each < 10**16:
                found.append((value, name, str(each), marks | NUMBER))
            if name not in _FIELDS and (len(name) >= _PLAIN_KEY or not name.isidentifier()):
                keys.append((value, name, name, marks & INSTRUCTION | KEY))
        return
    for at, each in enumerate(value):
        kind = type(each)
        if kind is str:
            found.append((value, at, each, marks))
        elif kind is dict or kind is list:
            walk(each, marks, found, keys)
        elif kind is int and 10**14 <= each < 10**16:
            found.append((value, at, str(each), marks | NUMBER))


def copied(value: Any) -> Any:
    """A copy of a JSON value that shares no dictionary and no list with it."""
    if isinstance(value, dict):
        return {name: copied(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [copied(each) for each in value]
    return value
