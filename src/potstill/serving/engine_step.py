"""Ask the engine over loopback HTTP. Leaving early (a gone client, a timeout) frees its slot.

The engine is asked for a stream, also for a whole answer: llama.cpp goes on writing an unstreamed answer that nobody
waits for any more (measured: 12 s until the slot was free, against 10 ms). An answer of a few tokens, a label, ends as
soon as its stream could be left: it is asked for whole, which saves both sides the packets (a third of the processor
time that a request costs here beside a busy engine).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from math import inf
from time import monotonic

import orjson

from potstill.records import Json, Message
from potstill.serving.backends import Backend, body_for
from potstill.serving.call import Asked, Call
from potstill.serving.errors import RequestRefused, engine_unavailable
from potstill.serving.upstream import Reply, UpstreamFault, UpstreamLate

_PATH = "/v1/chat/completions"
_LAST = b"data: [DONE]\n\n"
FEW_TOKENS = 32


async def ask(call: Call, engine: Backend, timeout_s: float) -> None:
    """Fill `call.response` with the engine's whole answer; raises RequestRefused."""
    question = Question(engine, call.upstream, call.started + timeout_s, timeout_s)
    try:
        call.response = await question.whole()
    finally:
        call.asked.append(question.asked("student", call.model.name))


async def ask_stream(call: Call, engine: Backend, timeout_s: float) -> AsyncGenerator[Json, None]:
    """The engine's chunks as they come (the usage chunk is kept back); fills `call.response` with the whole."""
    question = Question(engine, call.upstream, call.started + timeout_s, timeout_s)
    try:
        async with aclosing(question.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk
        call.response = question.answer.body()
    finally:
        call.asked.append(question.asked("student", call.model.name))


class Question:
    """One body put to one backend until the moment `deadline` (of `monotonic`).

    `answer` is what came, put together; `fault` is the code of what went wrong, None after a whole answer.
    """

    def __init__(self, engine: Backend, body: Json, deadline: float, timeout_s: float) -> None:
        self.engine, self.body, self.deadline, self.timeout_s = engine, body, deadline, timeout_s
        self.answer = Assembled()
        self.fault: str | None = "left_early"
        self._began = monotonic()

    def asked(self, by: str, model: str) -> Asked:
        """What it came to, for the account of a call."""
        return Asked(by, model, self.answer.usage, monotonic() - self._began, self.fault, self._began)

    async def whole(self) -> Json:
        """The whole answer in OpenAI's form; raises RequestRefused."""
        few = self.body.get("max_tokens") or inf
        async with aclosing(self.chunks(at_once=True, stream=few > FEW_TOKENS)) as chunks:
            async for _ in chunks:
                pass
        return self.answer.body()

    async def chunks(self, at_once: bool = False, stream: bool = True) -> AsyncGenerator[Json, None]:
        """The chunks, all but that of the usage, as they come or after the last; raises RequestRefused."""
        reply = None
        try:
            reply = await self._send(stream)
            if reply.headers.get("content-type", "").startswith("application/json"):
                for chunk in _chunks_of_whole(await reply.read()):
                    self.answer.add(chunk)
                    yield chunk
                self.fault = None
                return
            events = Events()
            while not events.done:
                piece = await (reply.next_burst(_LAST) if at_once else reply.next_piece())
                if piece is None:
                    raise engine_unavailable("the engine ended in the middle of the answer")
                for data in events.of(piece):
                    chunk = _chunk_of(data)
                    if "error" in chunk:
                        raise _refusal(502, data)
                    self.answer.add(chunk)
                    if chunk.get("choices"):
                        yield chunk
            self.fault = None
            reply.finish()
        except RequestRefused as refused:
            self.fault = refused.code or str(refused.status)
            raise
        except UpstreamLate as fault:
            self.fault = "timeout"
            message = f"no answer within {self.timeout_s:g} s"
            raise RequestRefused(504, message, kind="server_error", code="timeout") from fault
        except UpstreamFault as fault:
            self.fault = "engine_unavailable"
            where = " in the middle of the answer" if reply is not None else ""
            raise engine_unavailable(f"the engine went away{where}") from fault
        finally:
            if reply is not None:
                reply.close()

    async def _send(self, stream: bool) -> Reply:
        """The engine's 200; raises RequestRefused for another status."""
        if not self.engine.ready:
            raise engine_unavailable("the engine is not running")
        body = body_for(self.engine, self.body)
        body |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {"stream": False}
        reply = await self.engine.upstream.post(_PATH, orjson.dumps(body), self.deadline)
        if reply.status == 200:
            return reply
        try:
            data = await reply.read()
        finally:
            reply.close()
        raise _refusal(reply.status, data)


def as_chunks(response: Json) -> Iterator[Json]:
    """A whole answer as the chunks of a stream, two a choice."""
    head = {"created": response.get("created")}
    for choice in response["choices"]:
        index = choice.get("index", 0)
        first = {"index": index, "delta": _as_delta(choice["message"]), "finish_reason": None}
        first |= {"logprobs": choice["logprobs"]} if choice.get("logprobs") else {}
        yield head | {"choices": [first]}
        yield head | {"choices": [{"index": index, "delta": {}, "finish_reason": choice.get("finish_reason")}]}


def _as_delta(message: Message) -> Message:
    calls = [{"index": at, **each} for at, each in enumerate(message.get("tool_calls") or [])]
    return {**message, "tool_calls": calls} if calls else message


def _chunks_of_whole(data: bytes) -> list[Json]:
    try:
        whole = orjson.loads(data)
        found = [each | {"usage": whole.get("usage")} for each in as_chunks(whole)]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        found = []
    if not found:
        message = f"the engine said {data[:80]!r}, expected a chat completion"
        raise RequestRefused(502, message, kind="server_error", code="engine_error")
    return found


def _chunk_of(data: bytes) -> Json:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        chunk = None
    if not isinstance(chunk, dict):
        message = f"the engine said {data[:80]!r}, expected a chunk"
        raise RequestRefused(502, message, kind="server_error", code="engine_error")
    return chunk


def _refusal(status: int, data: bytes) -> RequestRefused:
    """The engine's own error: its 4xx is the request's fault, anything else is the engine's (502)."""
    try:
        error = orjson.loads(data)["error"]
        message, kind = str(error["message"]), str(error.get("type"))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message, kind = data[:200].decode(errors="replace"), ""
    if kind == "exceed_context_size_error":
        return RequestRefused(400, message, param="messages", code="context_length_exceeded")
    if 400 <= status < 500:
        return RequestRefused(400, f"the engine refused: {message}")
    return RequestRefused(502, f"the engine failed: {message}", kind="server_error", code="engine_error")


class Events:
    """The data of server-sent events, from pieces as they come, until `[DONE]`.

    Split at \\n alone: JSON may hold U+2028, which other splitters cut at.
    """

    def __init__(self) -> None:
        self.done = False
        self._rest = b""

    def of(self, piece: bytes) -> Iterator[bytes]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    self.done = True
                    return
                yield data


class Assembled:
    """Chunks put together into the body that an unstreamed answer would have had."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.calls: dict[int, Json] = {}
        self.logprobs: list[Json] = []
        self.finish_reason: str | None = None
        self.usage: Json = {}
        self.created: int | None = None

    def add(self, chunk: Json) -> None:
        self.created = chunk.get("created", self.created)
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", [])[:1]:
            delta = choice.get("delta") or {}
            self.content.append(delta.get("content") or "")
            self.logprobs += (choice.get("logprobs") or {}).get("content") or []
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            for part in delta.get("tool_calls") or []:
                self._add_call(part)

    def _add_call(self, part: Json) -> None:
        call = self.calls.setdefault(part.get("index", 0), {"type": "function", "function": {"arguments": ""}})
        function = part.get("function") or {}
        call.update({"id": part["id"]} if part.get("id") else {})
        call["function"].update({"name": function["name"]} if function.get("name") else {})
        call["function"]["arguments"] += function.get("arguments") or ""

    def body(self) -> Json:
        message: Message = {"role": "assistant", "content": "".join(self.content)}
        if self.calls:
            message["tool_calls"] = [self.calls[at] for at in sorted(self.calls)]
        choice: Json = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        choice |= {"logprobs": {"content": self.logprobs}} if self.logprobs else {}
        return {"object": "chat.completion", "created": self.created, "choices": [choice], "usage": self.usage}
