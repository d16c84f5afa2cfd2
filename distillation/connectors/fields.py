"""Fields of a logged record, read with their types: a wrong one raises DamagedLine naming it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from potstill.errors import DamagedLine
from potstill.records import Json

_NAMES = {dict: "object", list: "list", str: "text", int: "whole number", float: "number", bool: "true or false"}


def name_of(value: object) -> str:
    """What a value is, in the words of an error message."""
    return _NAMES.get(type(value), type(value).__name__)


def wrong(where: str, found: object, expected: str) -> DamagedLine:
    """The error for a value that is missing or of the wrong type, to be raised."""
    if found is None:
        return DamagedLine(f"{where}: missing, expected {expected}")
    return DamagedLine(f"{where}: found {name_of(found)}, expected {expected}")


def an_object(value: object, where: str) -> Json:
    """The value as an object; raises DamagedLine otherwise."""
    if not isinstance(value, dict):
        raise wrong(where, value, "object")
    return cast(Json, value)


def a_list(value: object, where: str) -> list[Any]:
    """The value as a list; raises DamagedLine otherwise."""
    if not isinstance(value, list):
        raise wrong(where, value, "list")
    return value


def a_text(value: object, where: str) -> str:
    """The value as text; raises DamagedLine otherwise."""
    if not isinstance(value, str):
        raise wrong(where, value, "text")
    return value


def a_name(value: object, where: str) -> str:
    """The value as text that is not empty; raises DamagedLine otherwise."""
    if not a_text(value, where):
        raise DamagedLine(f"{where}: empty")
    return cast(str, value)


def identity(value: object, where: str) -> str | None:
    """An id, user or key as text; whole numbers become text, None and empty text None. DamagedLine for the rest."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise wrong(where, value, "text")
    return str(value)


def number(value: object, where: str) -> float | None:
    """A finite number, also when it is written as text (tables do so); None for None and empty text."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise wrong(where, value, "number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong(where, value, "finite number")
    return value


def count(value: object, where: str) -> int | None:
    """A whole number from 0 on; None for None."""
    found = number(value, where)
    if found is None:
        return None
    if found != int(found) or found < 0:
        raise DamagedLine(f"{where}: found {found}, expected a whole number from 0 on")
    return int(found)


def parsed(value: object, where: str) -> Any:
    """What a JSON text says, or the value itself when it is no text; None for None and empty text."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except ValueError as fault:
        raise DamagedLine(f"{where}: found text that is not JSON ({fault}), expected JSON") from None


def optional_object(holder: Mapping[str, Any], key: str, where: str = "") -> Json:
    """The object at this key, also when it stands there as JSON text; empty when it is missing or null."""
    place = f"{where}.{key}" if where else key
    found = parsed(holder.get(key), place)
    return {} if found is None else an_object(found, place)


def iso_time(value: object, where: str) -> str | None:
    """A moment as ISO 8601, from ISO text or from a Unix time in s, ms, µs or ns; without a zone it is UTC."""
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str) and not _is_number(value):
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
        seconds = number(value, where) or 0.0
        while abs(seconds) > 1e11:  # 1e11 s is the year 5138: what is larger counts smaller units
            seconds /= 1000
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        raise DamagedLine(f"{where}: found {value!r:.60}, expected an ISO 8601 time or a Unix time") from None


def _is_number(value: str) -> bool:
    """Whether text is a Unix time rather than a short ISO date such as 20260105."""
    try:
        return math.isfinite(float(value)) and len(value) > 8
    except ValueError:
        return False


def milliseconds_between(start: str | None, end: str | None) -> float | None:
    """The time from one ISO 8601 moment to another in ms; None when one is missing or they are in the wrong order."""
    if start is None or end is None:
        return None
    passed = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() * 1000
    return round(passed, 3) if passed >= 0 else None
