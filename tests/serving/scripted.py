"""Servers that answer chat completions by a script, and a server of ours before them, asked in process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.contract import Contract
from potstill.prompt import Drop, PromptRule
from potstill.records import Json
from potstill.serving.app import App
from potstill.serving.backends import Address
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.order import ORDER
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.tasks import task_from

LABELS = ("card_arrival", "card_lost", "refund")
TASK: Json = {"kind": "classification", "labels": list(LABELS)}
INSTRUCTIONS = "Answer with one of card_arrival, card_lost, refund."
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
Say = Callable[[Json], Awaitable[Any]]


def token(text: str, probability: float, **others: float) -> Json:
    """A token of `logprobs.content` with its alternatives' probabilities."""
    from math import log

    top = [{"token": each, "bytes": list(each.encode()), "logprob": log(p)} for each, p in others.items()]
    own = {"token": text, "bytes": list(text.encode()), "logprob": log(probability)}
    return own | {"top_logprobs": [own, *top]}


def said(text: str, probability: float = 0.99) -> Json:
    """What a scripted model says: a text, its tokens' probability spread over the other first letters."""
    rest = (1 - probability) / 2
    others = {each: rest for each in ("card_a", "card_l", "refund") if not text.startswith(each)}
    return {"text": text, "content": [token(text, probability, **others)]}


@dataclass
class Scripted:
    """A server whose `say(body)` gives `said(...)`, a text, a (status, headers, body), or raises to hang up."""

    say: Say
    got: list[Json] = field(default_factory=list)
    open: int = 0

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def address(self, model: str = "m") -> Address:
        return Address(self.url, model)

    async def _said(self, body: Json, reader: asyncio.StreamReader) -> Any:
        """What the script says, unless the other side hangs up first."""
        saying, gone = asyncio.ensure_future(self.say(body)), asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({saying, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not saying.done():
                raise ConnectionResetError
            return saying.result()
        finally:
            saying.cancel()
            gone.cancel()
            await asyncio.gather(saying, gone, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.got.append(body)
                answer = await self._said(body, reader)
                writer.write(answer if isinstance(answer, bytes) else _reply(answer, body.get("stream", False)))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            return
        finally:
            self.open -= 1
            writer.transport.abort()


def _reply(answer: Any, stream: bool) -> bytes:
    if isinstance(answer, tuple):
        status, headers, body = answer
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {status} X\r\n{lines}content-length: {len(body)}\r\n\r\n{body}".encode()
    found = answer if isinstance(answer, dict) else {"text": answer}
    logprobs = {"logprobs": {"content": found["content"]}} if found.get("content") else {}
    if not stream:
        message = {"role": "assistant", "content": found["text"]}
        choice = {"index": 0, "message": message, "finish_reason": found.get("finish_reason", "stop")} | logprobs
        data = json.dumps({"created": 1, "choices": [choice], "usage": USAGE}).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data
    choice = {"index": 0, "delta": {"content": found["text"]}, "finish_reason": None} | logprobs
    end = {"index": 0, "delta": {}, "finish_reason": found.get("finish_reason", "stop")}
    events = [{"created": 1, "choices": [choice]}, {"choices": [end]}, {"choices": [], "usage": USAGE}]
    data = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events) + b"data: [DONE]\n\n"
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data) + data


def says(*answers: Any) -> Say:
    """Each answer once, then the last for ever."""
    left = list(answers)

    async def say(body: Json) -> Any:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return say


def deployment(name: str, model: Scripted, task: Json = TASK, digest: str = "a") -> Deployment:
    """A version behind a scripted model, whose students were trained without their instructions."""
    rule = PromptRule((Drop("system", INSTRUCTIONS),))
    contract = Contract(task, "", ["<end>"], rule.to_json(), 32, 512)
    served = Served(Path("none"), digest * 64, "scripted", Path("none"), contract, task_from(task), rule)
    return Deployment(name, served, model.address())


def serving(student: Scripted, large: Scripted | None = None, task: Json = TASK, **settings: Any) -> Server:
    """A server of one model; `large` answers as the large model."""
    if large is not None:
        settings["large"] = {"url": large.url, "model": "big", "timeout_s": settings.pop("large_timeout_s", 5.0)}
    return Server(Fleet(deployment("m", student, task)), ServeSettings(**settings), ORDER)


@dataclass(frozen=True)
class Answer:
    """What came back from one request."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Json:
        found: Json = json.loads(self.raw)
        return found

    @property
    def text(self) -> str:
        return str(self.body["choices"][0]["message"]["content"])

    @property
    def by(self) -> str:
        return self.headers["x-potstill-answered-by"]

    def events(self) -> list[Json]:
        lines = self.raw.decode().strip().split("\n\n")
        return [json.loads(each.removeprefix("data: ")) for each in lines if each != "data: [DONE]"]


async def asked(server: Server, **body: Any) -> Answer:
    """One request through the application, in process; `messages` as the client sent them in the log."""
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": "Where is my card?"}]
    raw = json.dumps({"model": "m", "messages": messages} | body).encode()
    sent: list[Any] = []
    came = iter([{"type": "http.request", "body": raw}])

    async def receive() -> Any:
        message = next(came, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await App(server)(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], headers, b"".join(each.get("body", b"") for each in sent[1:]))
