"""OpenAI's fine-tuning files: `messages` a line, whose last assistant turn is the answer.

`weight: 0` at an assistant's message means that it is not to be learnt: the answer is the last turn without it, and
what follows that turn is left out. Such a file says neither when, nor by whom, nor why an answer ended: the finish
reason is `tool_calls` for calls and `stop` otherwise, since only whole answers belong into it.
Source: OpenAI's guide to supervised fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator

from potstill.errors import DamagedLine
from potstill.records import Json

from . import normal
from .base import Connector, Lookup

_KEYS = {"messages", "tools", "functions", "parallel_tool_calls", "function_call", "tool_choice", "id", "metadata"}


def detect(record: Json) -> bool:
    messages = record.get("messages")
    if not isinstance(messages, list) or not set(record) <= _KEYS:
        return False
    return any(isinstance(each, dict) and each.get("role") == "assistant" for each in messages)


def read(record: Json, lookup: Lookup) -> Iterator[Json]:
    asked = {key: value for key, value in record.items() if key not in ("id", "metadata") and value is not None}
    request = normal.request(asked, "")
    messages = request["messages"]
    for at in range(len(messages) - 1, 0, -1):
        if messages[at]["role"] == "assistant" and messages[at].get("weight") != 0:
            break
    else:
        raise DamagedLine(
            "messages: found no assistant message to learn after another message, expected one at the end"
        )
    prompt = [{key: value for key, value in each.items() if key != "weight"} for each in messages[: at + 1]]
    answer = prompt.pop()
    finish = "tool_calls" if answer.get("tool_calls") else "stop"
    metadata = record.get("metadata")
    yield normal.exchange(
        request | {"messages": prompt},
        normal.completion(answer, finish, {}),
        id=record.get("id"),
        metadata=metadata if isinstance(metadata, dict) else None,
    )


CONNECTOR = Connector("openai_finetuning", "OpenAI's fine-tuning files", detect, read)
