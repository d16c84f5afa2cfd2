"""What `vllm serve FOLDER ...` looks like from outside, in a process: health, models, tokens, streamed completions.

It answers with the words of FOLDER/answer.txt, one a chunk. FOLDER/behaviour.json may say how it misbehaves:
`start_s` (health waits), `dies_after` (completions), `refuses` (ends at once), `every_s` (between chunks). What it was
started with and asked is appended to FOLDER/../seen.jsonl.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[2])
WORDS = (FOLDER / "answer.txt").read_text().split()
BEHAVIOUR: dict[str, Any] = {}
if (FOLDER / "behaviour.json").exists():
    BEHAVIOUR = json.loads((FOLDER / "behaviour.json").read_text())
PORT = int(sys.argv[sys.argv.index("--port") + 1])
NAME = sys.argv[sys.argv.index("--served-model-name") + 1]
GOLDEN = json.loads((FOLDER.parent / "contract.json").read_text())["golden"]
STARTED = time.monotonic()
asked = 0


def seen(what: Any) -> None:
    with (FOLDER.parent.parent / f"seen-{FOLDER.parent.name}.jsonl").open("a") as stream:
        stream.write(json.dumps(what) + "\n")


def golden_of(messages: Any) -> Any:
    return next((each for each in GOLDEN if each["messages"] == messages), None)


async def complete(body: Any, writer: asyncio.StreamWriter) -> None:
    global asked
    asked += 1
    golden = golden_of(body["messages"])
    usage = {"prompt_tokens": len(golden["token_ids"]) if golden else 7, "completion_tokens": len(WORDS)}
    words = WORDS[: body.get("max_tokens") or None]
    if not body.get("stream"):
        message = {"role": "assistant", "content": " ".join(words)}
        whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        respond(writer, 200, whole)
        return
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for at, word in enumerate(words):
        event(writer, {"choices": [{"index": 0, "delta": {"content": word if not at else f" {word}"}}]})
        await writer.drain()
        await asyncio.sleep(BEHAVIOUR.get("every_s", 0.001))
    if asked > BEHAVIOUR.get("dies_after", 1 << 30):
        os._exit(9)
    event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    event(writer, {"choices": [], "usage": usage})
    framed(writer, b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")


def event(writer: asyncio.StreamWriter, chunk: Any) -> None:
    framed(writer, b"data: " + json.dumps({"created": 1, **chunk}).encode() + b"\n\n")


def framed(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def respond(writer: asyncio.StreamWriter, status: int, body: Any) -> None:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)


async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while request := (await reader.readline()).split():
            length = 0
            while (line := await reader.readline()).strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = json.loads(await reader.readexactly(length)) if length else {}
            await answer(request[1].decode(), body, writer)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def answer(path: str, body: Any, writer: asyncio.StreamWriter) -> None:
    if path == "/health":
        respond(writer, 200 if time.monotonic() - STARTED >= BEHAVIOUR.get("start_s", 0) else 503, {})
    elif path == "/v1/models":
        respond(writer, 200, {"data": [{"id": NAME}]})
    elif path == "/tokenize":
        golden = golden_of(body["messages"])
        respond(writer, 200, {"tokens": BEHAVIOUR.get("tokens") or golden["token_ids"]})
    else:
        if BEHAVIOUR.get("notes"):
            seen(body)
        await complete(body, writer)


async def main() -> None:
    seen({"argv": sys.argv[1:], "pid": os.getpid()})
    if BEHAVIOUR.get("refuses"):
        sys.exit("CUDA error: no kernel image is available for execution on the device")
    server = await asyncio.start_server(connected, "127.0.0.1", PORT, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
