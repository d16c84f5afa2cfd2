"""OpenAI's preference files: `input`, `preferred_output` and `non_preferred_output` a line.

The exchange's response is the output that was not preferred: what was answered and found wanting. The preferred one
is its correction, named "preference": text, or the assistant's message where it calls tools. So whoever learns from
corrections learns the preferred output, and a preference pair is (chosen: correction, rejected: answer).
Source: OpenAI's guide to direct preference optimization.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from potstill.errors import DamagedLine
from potstill.records import Json, Message

from . import normal
from .base import Connector, Lookup
from .fields import a_list, an_object


def detect(record: Json) -> bool:
    asked = record.get("input")
    return isinstance(asked, dict) and "preferred_output" in record and "non_preferred_output" in record


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    request = normal.request(an_object(record.get("input"), "input"), "input")
    rejected, chosen = _output(record, "non_preferred_output"), _output(record, "preferred_output")
    value: Any = chosen if chosen.get("tool_calls") else normal.text_of(chosen["content"])
    metadata = record.get("metadata")
    yield normal.exchange(
        request,
        normal.completion(rejected, "tool_calls" if rejected.get("tool_calls") else "stop", {}),
        id=record.get("id"),
        metadata=metadata if isinstance(metadata, dict) else None,
        feedback=[{"kind": "correction", "name": "preference", "value": value, "time": None, "by": None}],
    )


def _output(record: Json, key: str) -> Message:
    turns = [normal.answer(each, f"{key}[{at}]") for at, each in enumerate(a_list(record.get(key), key))]
    if len(turns) != 1:
        raise DamagedLine(f"{key}: found {len(turns)} messages, expected one of the assistant")
    if not turns[0].get("content") and not turns[0].get("tool_calls"):
        raise DamagedLine(f"{key}[0]: found neither content nor tool_calls")
    return turns[0]


CONNECTOR = Connector("openai_preferences", "OpenAI's preference files", detect, read)
