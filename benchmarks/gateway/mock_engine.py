"""An engine that answers at once: what is left of a request's time is the gateway's.

Run: `python -m benchmarks.gateway.mock_engine --port 0 [--tokens 4] [--every-ms 0] [--first-ms 0]`; prints its address.

It speaks just enough HTTP/1.1 to be asked by anybody: a body by length, connections kept, a stream of server-sent
events in chunks or one JSON body, as `stream` asks. Every token is a chunk of its own, `every-ms` apart; with `--obey`
there are as many as the request's max_tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from functools import cache
from typing import cast

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: "
STREAM_HEAD = HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk_of(delta: dict[str, str], finish: str | None, told: bool = False) -> bytes:
    """One server-sent event as llama.cpp's server writes it; `told` with twenty alternatives to its token."""
    choice: dict[str, object] = {"finish_reason": finish, "index": 0, "delta": delta}
    if told:
        token = delta["content"]
        others = [{"token": f"other_{at}", "bytes": None, "logprob": -4.0 - at} for at in range(1, 20)]
        first = {"token": token, "bytes": None, "logprob": -0.05}
        choice["logprobs"] = {"content": [first | {"top_logprobs": [first, *others]}]}
    body = {
        "choices": [choice], "created": 1, "id": "chatcmpl-mock",
        "model": "mock", "system_fingerprint": "mock", "object": "chat.completion.chunk",
    }  # fmt: skip
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class Answers:
    """The bytes of all answers, made once."""

    def __init__(self, text: str, tokens: int, told: bool = False) -> None:
        pieces = [text] if tokens <= 1 else [text, *(" word" for _ in range(tokens - 1))]
        usage = {"prompt_tokens": 12, "completion_tokens": tokens, "total_tokens": 12 + tokens}
        last = {"choices": [], "created": 1, "id": "chatcmpl-mock", "object": "chat.completion.chunk", "usage": usage}
        self.pieces = [chunk_of({"content": each}, None, told) for each in pieces]
        self.tail = chunk_of({}, "stop") + b"data: " + json.dumps(last).encode() + b"\n\n" + DONE
        self.at_once = STREAM_HEAD + framed(b"".join(self.pieces) + self.tail) + b"0\r\n\r\n"
        message = {"role": "assistant", "content": "".join(pieces)}
        body = json.dumps(
            {"id": "chatcmpl-mock", "object": "chat.completion", "created": 1, "model": "mock",
             "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        ).encode()  # fmt: skip
        self.whole = HEAD + f"application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def asked_tokens(body: bytes) -> int:
    """`max_tokens` of a request, 0 where it has none."""
    at = body.find(b'"max_tokens":')
    digits = body[at + 13 : at + 23].lstrip().split(b",")[0].split(b"}")[0].strip() if at >= 0 else b""
    return int(digits) if digits.isdigit() else 0


class Connection(asyncio.Protocol):
    """One client; requests come one after the other."""

    def __init__(self, answers: Callable[[int, bool], Answers], first_s: float, every_s: float) -> None:
        self.answers, self.first_s, self.every_s = answers, first_s, every_s
        self.buffer = bytearray()
        self.writing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end]).lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = bytes(self.buffer[end + 4 : end + 4 + length])
            del self.buffer[: end + 4 + length]
            answers = self.answers(asked_tokens(body), b'"logprobs":true' in body)
            self.answer(answers, b'"stream":true' in body or b'"stream": true' in body)

    def answer(self, answers: Answers, stream: bool) -> None:
        if not self.first_s and not self.every_s:
            self.transport.write(answers.at_once if stream else answers.whole)
        else:
            self.writing = asyncio.ensure_future(self.slowly(answers, stream))

    async def slowly(self, answers: Answers, stream: bool) -> None:
        await asyncio.sleep(self.first_s)
        if not stream:
            await asyncio.sleep(self.every_s * len(answers.pieces))
            self.transport.write(answers.whole)
            return
        self.transport.write(STREAM_HEAD)
        for piece in answers.pieces:
            self.transport.write(framed(piece))
            await asyncio.sleep(self.every_s)
        self.transport.write(framed(answers.tail) + b"0\r\n\r\n")

    def connection_lost(self, fault: Exception | None) -> None:
        if self.writing is not None:
            self.writing.cancel()


async def serve(port: int, answers: Callable[[int, bool], Answers], first_s: float, every_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(answers, first_s, every_s), "127.0.0.1", port, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # whoever started us is gone when this closes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--text", default="label")
    parser.add_argument("--first-ms", type=float, default=0)
    parser.add_argument("--every-ms", type=float, default=0)
    parser.add_argument("--obey", action="store_true")
    args = parser.parse_args()

    @cache
    def answers(tokens: int, told: bool) -> Answers:
        return Answers(args.text, tokens if args.obey and tokens else args.tokens, told)

    asyncio.run(serve(args.port, answers, args.first_ms / 1000, args.every_ms / 1000))


if __name__ == "__main__":
    main()
