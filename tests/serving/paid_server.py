"""A server before an engine of one's own making, with prices, budgets and limits; and an engine that counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.contract import Contract
from potstill.prompt import PromptRule
from potstill.serving.authenticate import Keys
from potstill.serving.backends import Address
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.order import ORDER
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.tasks import task_from

TASK = {"kind": "generation"}
WINDOW = 100_000
# A million output tokens cost as many dollars: a token is a dollar's millionth times this; prompts cost nothing.
USD_A_TOKEN = 0.001


def paid_server(engine_url: str, folder: Path, keys: Keys | None = None, **settings: Any) -> Server:
    """Every token of an answer costs `USD_A_TOKEN`, so a call is reserved at its `max_tokens`, and settled by usage."""
    contract = Contract(TASK, "", [], PromptRule().to_json(), 32, WINDOW)
    served = Served(folder, "d" * 64, "scripted", folder, contract, task_from(TASK), PromptRule())
    prices = {"student": {"input": 0.0, "output": USD_A_TOKEN * 1e6}}
    checked = ServeSettings.model_validate({"prices": prices, "capture": None, **settings})
    fleet = Fleet(Deployment("m", served, Address(engine_url, "m")))
    return Server(fleet, checked, ORDER, keys=keys, state_dir=folder)


class CountingEngine:
    """Answers in half of `max_tokens`, and counts what it answered: what was really spent, killed callers included.

    `hold_s` passes before an answer; with `endless` the first token comes at once and the last one never.
    """

    def __init__(self, hold_s: float = 0.0, endless: bool = False, told: Callable[[str], None] | None = None) -> None:
        self.hold_s, self.endless, self.told = hold_s, endless, told
        self.asked = 0
        self.tokens = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await self._answer(json.loads(await reader.readexactly(length)), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, body: Any, writer: asyncio.StreamWriter) -> None:
        tokens = body["max_tokens"] // 2
        self.asked += 1
        self.tokens += tokens  # from here on it may have been read: this is what a provider would bill
        if self.told is not None:
            self.told(body["messages"][0]["content"])
        if self.hold_s:
            await asyncio.sleep(self.hold_s)
        delta = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}], "created": 1}
        if self.endless:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + _framed(delta))
            await writer.drain()
            await asyncio.sleep(3600)
        stop = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "created": 1}
        usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
        last = _framed(delta) + _framed(stop) + _framed({"choices": [], "usage": usage})
        done = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + last + done)
        await writer.drain()


def _framed(event: Any) -> bytes:
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class Client:
    """One kept connection to a server; raises ConnectionError when the server dies."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, content: str = "x", max_tokens: int = 4, key: str = "", **body: Any) -> tuple[int, Any]:
        """Status and body of one completion."""
        await self.send(content, max_tokens, key, **body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        return int(head[9:12]), json.loads(await self._reader.readexactly(length))

    async def send(self, content: str, max_tokens: int, key: str = "", **body: Any) -> None:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        message = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens} | body
        raw = json.dumps(message).encode()
        shown = f"authorization: Bearer {key}\r\n" if key else ""
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{shown}content-length: {len(raw)}\r\n\r\n"
        self._writer.write(head.encode() + raw)
        await self._writer.drain()

    async def first_byte(self) -> None:
        await self._reader.readexactly(1)

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
