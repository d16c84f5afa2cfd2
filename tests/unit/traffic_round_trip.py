"""What the connector tests share: generated exchanges, fixtures, and the three promises that every connector keeps.

A connector's test writes a generated exchange in the format (its `write`), lets the connector read it, and compares;
reads its fixture; and damages the fixture's records at random.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from hypothesis import strategies as st

from distillation.connectors import FORMATS, connector
from distillation.connectors.base import Connector, Lookup
from potstill.errors import DamagedLine
from potstill.records import Exchange, Json, Message

FIXTURES = Path(__file__).parent.parent / "fixtures" / "traffic"
ROLES = ("system", "developer", "user", "assistant", "tool")
PART_TYPES = ("text", "image_url", "input_audio", "file", "refusal")
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")


# ---- what a format can carry: the generator makes nothing else -------------------------------------------------


@dataclass(frozen=True, slots=True)
class Carries:
    """The limits of a format. Every default is the widest."""

    system: Literal["none", "first", "anywhere"] = "anywhere"  # "first": at most one, as the first message
    developer: bool = True
    tools: bool = True
    text_with_calls: bool = True  # an assistant turn may hold text and tool calls at once
    parts: tuple[str, ...] = ("text", "image_url")  # content parts of user messages; empty: plain text only
    image_urls: bool = True  # images by address besides images as data
    turns: int = 3
    finish_reasons: tuple[str, ...] = FINISH_REASONS  # besides "tool_calls", which an answer with calls always has


def texts(min_size: int = 1) -> st.SearchStrategy[str]:
    """Text with line ends, quotes and letters of every script."""
    return st.text(min_size=min_size, max_size=12) | st.sampled_from(
        ['a "quoted" word', "two\nlines", "Größe 日本 🙂", "{}", "\\", "null", "<b>&amp;"]
    )


names = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
identifiers = st.from_regex(r"[a-zA-Z0-9]{1,10}", fullmatch=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts(0),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def tool_definitions(draw: st.DrawFn) -> list[Json]:
    """Up to three functions under different names."""
    made = []
    for name in draw(st.lists(names, max_size=3, unique=True)):
        properties = draw(st.dictionaries(names, st.sampled_from(["string", "integer", "boolean"]), max_size=3))
        parameters = {
            "type": "object",
            "properties": {key: {"type": kind} for key, kind in properties.items()},
            "required": sorted(properties)[:1],
        }
        function = {"name": name, "description": draw(texts()), "parameters": parameters}
        made.append({"type": "function", "function": function})
    return made


@st.composite
def _part(draw: st.DrawFn, carries: Carries) -> Json:
    kind = draw(st.sampled_from(carries.parts))
    if kind == "text":
        return {"type": "text", "text": draw(texts())}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    if kind == "file":
        return {"type": "file", "file": {"file_id": "file-" + draw(identifiers)}}
    urls = ["data:image/png;base64,iVBORw0KGgo=", "data:image/jpeg;base64,/9j/4AAQ"]
    urls += ["https://example.com/a.png"] if carries.image_urls else []
    return {"type": "image_url", "image_url": {"url": draw(st.sampled_from(urls))}}


@st.composite
def _assistant(draw: st.DrawFn, carries: Carries, tools: list[Json], used: set[str]) -> Message:
    if not tools or not draw(st.booleans()):
        return {"role": "assistant", "content": draw(texts())}
    content = draw(texts()) if carries.text_with_calls and draw(st.booleans()) else None
    calls = []
    for _ in range(draw(st.integers(1, 2))):
        identity = "call_" + draw(identifiers.filter(lambda each: "call_" + each not in used))
        used.add(identity)
        name = draw(st.sampled_from(tools))["function"]["name"]
        arguments = json.dumps(draw(st.dictionaries(names, json_values, max_size=3)))
        calls.append({"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}})
    return {"role": "assistant", "content": content, "tool_calls": calls}


@st.composite
def _messages(draw: st.DrawFn, carries: Carries, tools: list[Json], used: set[str]) -> list[Message]:
    """A conversation that ends in what the assistant has to answer: a user message or tool results."""
    made: list[Message] = []
    leading = ["system", *(["developer"] if carries.developer else [])]
    if carries.system != "none" and draw(st.booleans()):
        made.append({"role": draw(st.sampled_from(leading)), "content": draw(texts())})
    for turn in range(draw(st.integers(1, carries.turns))):
        if turn:
            made.append({"role": "assistant", "content": draw(texts())})
            if carries.system == "anywhere" and draw(st.integers(0, 3)) == 0:
                made.append({"role": draw(st.sampled_from(leading)), "content": draw(texts())})
        parted = bool(carries.parts) and draw(st.booleans())
        made.append(
            {
                "role": "user",
                "content": draw(st.lists(_part(carries), min_size=1, max_size=3)) if parted else draw(texts()),
            }
        )
        asked = draw(_assistant(carries, tools, used))
        if "tool_calls" in asked:
            made.append(asked)
            made += [
                {"role": "tool", "tool_call_id": each["id"], "content": draw(texts(0))} for each in asked["tool_calls"]
            ]
    return made


@st.composite
def exchanges(draw: st.DrawFn, carries: Carries | None = None) -> Json:
    """One exchange in the normalised form, within what the format carries."""
    limits = carries or Carries()
    tools = draw(tool_definitions()) if limits.tools else []
    used: set[str] = set()
    messages = draw(_messages(limits, tools, used))
    answer = draw(_assistant(limits, tools, used))
    others = [each for each in limits.finish_reasons if each != "tool_calls"]
    finish = "tool_calls" if "tool_calls" in answer else draw(st.sampled_from(others))
    request: Json = {"model": "big-model-1", "messages": messages, "temperature": draw(st.sampled_from([0, 0.5, 1]))}
    if tools:
        request["tools"] = tools
    prompt, completion = draw(st.integers(0, 9999)), draw(st.integers(0, 9999))
    moment = datetime(2026, 1, 5, tzinfo=UTC) + timedelta(seconds=draw(st.integers(0, 10**6)))
    return {
        "id": "x" + draw(identifiers),
        "time": moment.isoformat(),
        "request": request,
        "response": {
            "choices": [{"index": 0, "message": answer, "finish_reason": finish}],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        },
        "latency_ms": float(draw(st.integers(1, 60_000))),
        "cost_usd": draw(st.integers(1, 10**6)) / 2**20,
        "metadata": {"conversation": "c" + draw(identifiers), "user": "u" + draw(identifiers)},
    }


# ---- reading ------------------------------------------------------------------------------------------------------


class Beside:
    """Companion records held in memory, found by the connector's own dotted key."""

    def __init__(self, found: Connector, records: dict[str, list[Json]] | None = None) -> None:
        self._connector = found
        self._records = records or {}

    def get(self, companion: str, key: str) -> list[Json]:
        steps = self._connector.companions[companion].split(".")
        return [each for each in self._records.get(companion, []) if _at(each, steps) == key]


def _at(record: Any, steps: list[str]) -> Any:
    for step in steps:
        record = record.get(step) if isinstance(record, dict) else None
    return record


@dataclass(frozen=True, slots=True)
class Written:
    """What a test's writer makes of one exchange: records of the format and of its companion files."""

    records: list[Json]
    beside: dict[str, list[Json]] = field(default_factory=dict)


Writer = Callable[[Json], Written]


def read_all(found: Connector, records: list[Json], beside: dict[str, list[Json]] | None = None) -> list[Exchange]:
    """Every exchange in these records, checked by `Exchange.from_json` and against the normalised form."""
    lookup: Lookup = Beside(found, beside)
    made = []
    for record in records:
        before = copy.deepcopy(record)
        for each in found.read(record, lookup):
            exchange = Exchange.from_json(json.loads(json.dumps(each)))
            assert_normal(exchange)
            made.append(exchange)
        assert record == before or json.dumps(record) == json.dumps(before), "reading changed the record"
    return made


def fixture(name: str, companion: str | None = None) -> list[Json]:
    """The records of a format's fixture, or of one of its companion files."""
    path = FIXTURES / (f"{name}.{companion}.jsonl" if companion else f"{name}.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def beside_fixture(found: Connector) -> dict[str, list[Json]]:
    """The records of all companion files that stand beside a format's fixture."""
    there = [each for each in found.companions if (FIXTURES / f"{found.name}.{each}.jsonl").exists()]
    return {each: fixture(found.name, each) for each in there}


def of_fixture(name: str, at: int) -> Exchange:
    """The exchange of one record of a fixture."""
    found = connector(name)
    [exchange] = read_all(found, [fixture(name)[at]], beside_fixture(found))
    return exchange


def existing_formats() -> Iterator[str]:
    """The formats whose module and fixture are there."""
    for name in FORMATS:
        if find_spec(f"distillation.connectors.{name}") and (FIXTURES / f"{name}.jsonl").exists():
            yield name


# ---- the promises -------------------------------------------------------------------------------------------------


def assert_normal(exchange: Exchange) -> None:
    """The exchange keeps the rules of the normalised form (OpenAI's chat form)."""
    for message in [*exchange.messages, exchange.answer]:
        _assert_message(message)
    assert exchange.answer["role"] == "assistant"
    for tool in exchange.tools:
        assert isinstance(tool, dict), tool
        if tool.get("type", "function") == "function":
            assert isinstance(tool["function"]["name"], str), tool
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        value = exchange.usage.get(key, 0)
        assert type(value) is int, exchange.usage
    assert exchange.finish_reason is None or isinstance(exchange.finish_reason, str)
    if exchange.time is not None:
        datetime.fromisoformat(exchange.time)
    for key in ("conversation", "user", "key"):
        assert exchange.metadata.get(key) is None or isinstance(exchange.metadata[key], str), exchange.metadata


def _assert_message(message: Message) -> None:
    assert message["role"] in ROLES, message
    content = message.get("content")
    assert content is None or isinstance(content, str | list), message
    for part in content if isinstance(content, list) else []:
        assert part["type"] in PART_TYPES, message
        assert part["type"] != "text" or isinstance(part["text"], str), message
        assert part["type"] != "image_url" or isinstance(part["image_url"]["url"], str), message
    for call in message.get("tool_calls") or []:
        assert call["type"] == "function", message
        named = (call["id"], call["function"]["name"], call["function"]["arguments"])
        assert all(isinstance(each, str) for each in named), message
    assert message["role"] != "tool" or isinstance(message.get("tool_call_id"), str), message
    assert content is not None or message["role"] == "assistant", message


def comparable(messages: list[Message]) -> list[Message]:
    """Messages with the arguments of tool calls parsed and absent values left out: equal when they say the same."""
    made = copy.deepcopy(messages)
    for message in made:
        for call in message.get("tool_calls") or []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return [{key: value for key, value in each.items() if value is not None and value != []} for each in made]


EVERYTHING = frozenset({"usage", "finish_reason", "time", "latency_ms", "cost_usd", "conversation", "user", "model"})


def assert_round_trip(name: str, want: Json, write: Writer, keeps: frozenset[str] = EVERYTHING) -> None:
    """The connector gives back what was written: messages, tools and answer always, and whatever the format keeps."""
    found, written = connector(name), write(copy.deepcopy(want))
    for record in written.records:
        assert found.detect(record), f"{name} does not know its own record: {sorted(record)}"
    got = read_all(found, written.records, written.beside)
    assert len(got) == 1
    exchange, wanted = got[0], Exchange.from_json(want)
    assert comparable(exchange.messages) == comparable(wanted.messages)
    assert exchange.tools == wanted.tools
    assert comparable([exchange.answer]) == comparable([wanted.answer])
    if "usage" in keeps:
        assert {key: exchange.usage.get(key) for key in wanted.usage} == wanted.usage
    if "finish_reason" in keeps:
        assert exchange.finish_reason == wanted.finish_reason
    if "time" in keeps:
        assert datetime.fromisoformat(exchange.time or "") == datetime.fromisoformat(wanted.time or "")
    for key in {"latency_ms", "cost_usd"} & keeps:
        assert abs(getattr(exchange, key) - getattr(wanted, key)) < 1e-3 * getattr(wanted, key), key
    for key in {"conversation", "user"} & keeps:
        assert exchange.metadata.get(key) == wanted.metadata[key], key
    if "model" in keeps:
        assert exchange.request.get("model") == wanted.request["model"]


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from _paths(each, (*path, key))


WRONG: tuple[Any, ...] = (
    None,
    0,
    -1,
    1.5,
    True,
    "",
    "x",
    "{",
    "[1]",
    "{}",
    [],
    {},
    [None],
    [[]],
    [{}],
    ["x"],
    {"x": 1},
)


@st.composite
def damaged(draw: st.DrawFn, records: list[Json]) -> Json:
    """One of these records with one to three values taken away or replaced by something of another type."""
    record = copy.deepcopy(draw(st.sampled_from(records)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(_paths(record), key=repr) or [()]))
        if not path:
            break
        holder = record
        for step in path[:-1]:
            holder = holder[step]  # type: ignore[index]
        if draw(st.booleans()):
            del holder[path[-1]]  # type: ignore[arg-type]
        else:
            holder[path[-1]] = copy.deepcopy(draw(st.sampled_from(WRONG)))  # type: ignore[index]
    return record


def assert_reads_or_refuses(found: Connector, record: Json, beside: dict[str, list[Json]] | None = None) -> None:
    """A damaged record either raises DamagedLine or yields exchanges in the normalised form; nothing else."""
    assert found.detect(record) in (True, False)
    with suppress(DamagedLine):
        read_all(found, [record], beside)


def assert_detected_by_its_own_alone(name: str) -> None:
    """Every record of the fixture is known by its own connector and by no other whose module is there."""
    for at, record in enumerate(fixture(name)):
        known = [each for each in FORMATS if find_spec(f"distillation.connectors.{each}") and _detects(each, record)]
        assert known == [name], f"{name}.jsonl:{at + 1} is known by {known}"


def _detects(name: str, record: Json) -> bool:
    return connector(name).detect(record)
