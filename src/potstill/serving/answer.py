"""The way of a request: in through the steps, to the engine, out through the steps; whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import orjson

from potstill.progress import say
from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.choices import ask_choices, stream_choices
from potstill.serving.engine_step import as_chunks, ask, ask_stream
from potstill.serving.errors import RequestRefused
from potstill.serving.forms import TextForm
from potstill.serving.http import Http, while_there
from potstill.serving.passage import Passage
from potstill.serving.server import Server

DONE = b"data: [DONE]\n\n"
CHAT = "/v1/chat/completions"


async def chat_completions(server: Server, http: Http) -> None:
    """Answer one request; its end is settled and counted however it came."""
    await answer(server, Call(http, server.plan))


async def completions(server: Server, http: Http) -> None:
    """The same for the older text completions."""
    await answer(server, Call(http, server.plan, form=TextForm()))


async def answer(server: Server, call: Call) -> None:
    """Take a call all its way. A refusal is answered here; a fault of our own is raised once it is counted."""
    server.meter.in_flight.inc()
    try:
        with while_there(call.http):
            await _way(server, call)
    except RequestRefused as refused:
        call.status = refused.status
        await call.http.refuse(refused)
    except BaseException:
        call.status = 500
        raise
    finally:
        await _settle(call)
        server.meter.in_flight.dec()
        server.meter.requests.labels(call.form.route if call.form else CHAT, call.status).inc()


async def _settle(call: Call) -> None:
    """The end of every step; one that fails is said and keeps no other from its own."""
    for end in call.plan.end:
        try:
            await end(call)
        except Exception as fault:
            say(f"serve: the end of {getattr(end, '__qualname__', end)} failed: {type(fault).__name__}: {fault}")


async def _way(server: Server, call: Call) -> None:
    for before in call.plan.before:
        await before(call)
        if call.response:
            for after in call.plan.after_given:
                await after(call)
            break
    else:
        if call.stream and not _held_back(call):
            await _stream(server, call)
            return
        await _ask(server, call)
        await _out(call)
    shown = Passage(call, live=False).whole(call.response)
    if call.stream:
        await call.http.begin_events()
        await _send(call, as_chunks(shown))
        await _send_rest(call)
    else:
        await call.http.respond_json(call.form.whole(shown) if call.form else shown)


def _held_back(call: Call) -> bool:
    """Whether the client must see nothing before all is known: half a tool call means nothing."""
    return call.model.served.task.kind == "tool_calls" or call.plan.needs_whole(call)


async def _ask(server: Server, call: Call) -> None:
    """The engine's whole answer, or that of a step that helps where the engine fails."""
    try:
        asking = ask if call.choices == 1 else ask_choices
        await asking(call, call.model.engine, call.engine_timeout_s or server.settings.request_timeout_s)
        call.answered_by = "engine"
    except RequestRefused as refused:
        await _rescue(call, refused)


async def _rescue(call: Call, refused: RequestRefused) -> None:
    """An answer from elsewhere where a step has one; the refusal otherwise."""
    for failed in call.plan.failed:
        await failed(call, refused)
        if call.response:
            return
    raise refused


async def _out(call: Call) -> None:
    """The answer in our name, and out through the steps."""
    call.response = head(call, "chat.completion") | {
        "created": call.response.get("created"),
        "choices": call.response["choices"],
        "usage": call.response.get("usage") or {},
    }
    for after in call.plan.after:
        await after(call)


def head(call: Call, kind: str) -> Json:
    """What every answer and every chunk begins with."""
    model = call.model
    return {"id": call.id, "object": kind, "model": model.name, "system_fingerprint": model.artifact}


async def _stream(server: Server, call: Call) -> None:
    """Chunks as they come. Whatever is refused before the first one still gets a status of its own."""
    asking = ask_stream if call.choices == 1 else stream_choices
    chunks = asking(call, call.model.engine, call.engine_timeout_s or server.settings.request_timeout_s)
    async with aclosing(chunks):
        try:
            first = await anext(chunks, None)
        except RequestRefused as refused:
            await _rescue(call, refused)
            first = None
        call.first_s = call.seconds
        await call.http.begin_events()
        if first is None:
            await _out(call)
            await _send(call, as_chunks(Passage(call, live=False).whole(call.response)))
        else:
            call.answered_by = "engine"
            passage = Passage(call, live=True)
            await _send(call, passage.chunks(first))
            await _send_all(call, chunks, passage)
            await _out(call)
    await _send_rest(call)


async def _send_all(call: Call, chunks: AsyncGenerator[Json, None], passage: Passage) -> None:
    begin = _begin_of(call)
    async for chunk in chunks:
        for shown in passage.chunks(chunk):
            await call.http.write(_event(call, begin, shown))


async def _send(call: Call, chunks: Iterable[Json]) -> None:
    begin = _begin_of(call)
    for chunk in chunks:
        await call.http.write(_event(call, begin, chunk))


def _begin_of(call: Call) -> Json:
    return head(call, "chat.completion.chunk") | ({"usage": None} if call.wants_usage else {})


def _event(call: Call, begin: Json, chunk: Json) -> bytes:
    body = begin | {"created": chunk.get("created"), "choices": chunk["choices"]}
    return b"data: " + orjson.dumps(call.form.event(body) if call.form else body) + b"\n\n"


async def _send_rest(call: Call) -> None:
    """Usage where it was asked for, and the mark of a whole answer."""
    if call.wants_usage:
        whole = call.response
        chunk = {"created": whole["created"], "choices": []}
        await call.http.write(_event(call, head(call, "chat.completion.chunk") | {"usage": whole["usage"]}, chunk))
    await call.http.write(DONE)
    await call.http.end()
