"""Requests of a batch, found by the `custom_id` of their result."""

from __future__ import annotations

from potstill.errors import DamagedLine
from potstill.records import Json

from .base import Lookup


def request_of(custom_id: str, lookup: Lookup) -> Json:
    """The one line of the companion `input` with this custom_id; the same line twice is one.

    Raises DamagedLine when there is none, and when different requests bear the same custom_id.
    """
    found = lookup.get("input", custom_id)
    if not found:
        raise DamagedLine(f"custom_id: {custom_id!r:.80} is not in the input file, expected its request there")
    if any(each != found[0] for each in found):
        raise DamagedLine(f"custom_id: {custom_id!r:.80} stands for {len(found)} different requests in the input file")
    return found[0]
