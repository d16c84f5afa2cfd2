"""When two JSON values are the same answer: key order and the way a number is written do not count, types do."""

from __future__ import annotations

from typing import Any

from potstill.records import canonical_json


def form(value: Any) -> str:
    """One text for all JSON values that are equal: 1 and 1.0, {"a": 1, "b": 2} and {"b": 2, "a": 1}.

    JSON (RFC 8259, section 6) knows numbers, not integers and floats; the order of an object's members has no meaning
    (section 4), that of an array has. Text is never a number: "1" is not 1, and true is not 1.
    """
    return canonical_json(plain(value))


def plain(value: Any) -> Any:
    """Equal JSON numbers made equal: 1.0 becomes 1 (True stays True)."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def loose(value: Any) -> str:
    """The same with types forgiven too ("1", 1; "true", true): what only a careless reader would call equal.

    Never scored. It tells a wrong type from a wrong value where mistakes are counted.
    """
    return canonical_json(_untyped(plain(value)))


def _untyped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untyped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_untyped(each) for each in value]
    if isinstance(value, str):
        return value.strip()
    return canonical_json(value)
