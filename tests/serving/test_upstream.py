"""Promises of the connections to an engine, against a server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest

from potstill.serving.upstream import MOST_WAITING, Upstream, UpstreamFault, UpstreamLate

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


@asynccontextmanager
async def scripted(script: Script) -> Any:
    """A server that gives each connection, numbered from 0, to `script`; yields an Upstream to it."""
    opened = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        number, opened = opened, opened + 1
        try:
            await script(reader, writer, number)
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    upstream = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    upstream.opened = lambda: opened  # type: ignore[attr-defined]
    try:
        yield upstream
    finally:
        upstream.close()
        server.close()


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def asked(upstream: Upstream, body: bytes = b"{}") -> bytes:
    reply = await upstream.post("/v1/x", body)
    try:
        return await reply.read()
    finally:
        reply.close()


def test_one_connection_serves_many_requests() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            assert b"POST /v1/x HTTP/1.1\r\n" in await request_of(reader)
            writer.write(WHOLE)

    async def main() -> None:
        async with scripted(script) as upstream:
            assert [await asked(upstream) for _ in range(20)] == [b"hello"] * 20
            assert upstream.opened() == 1

    asyncio.run(main())


def test_a_kept_connection_that_died_is_replaced_once_and_silently() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(WHOLE)
        await writer.drain()
        if number == 0:  # takes the next request too, and closes without a word
            await request_of(reader)

    async def main() -> None:
        async with scripted(script) as upstream:
            assert await asked(upstream) == b"hello"
            assert await asked(upstream) == b"hello"
            assert upstream.opened() == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ],
)
def test_an_answer_that_breaks_off_is_a_fault_never_a_short_answer(bytes_sent: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(bytes_sent)
        await writer.drain()

    async def main() -> None:
        async with scripted(script) as upstream:
            with pytest.raises(UpstreamFault):
                await asked(upstream)

    asyncio.run(main())


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces)


def test_a_burst_comes_in_one_and_wakes_its_reader_once() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for each in [b"a", b"b", b"c", b"END\n", b"more", b"END\n"]:
            writer.write(chunked(each))
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(chunked(b""))
        await writer.drain()

    async def main() -> None:
        async with scripted(script) as upstream:
            reply = await upstream.post("/v1/x", b"{}")
            woken = 0
            more = reply._connection._more

            async def counted() -> None:
                nonlocal woken
                woken += 1
                await more()

            reply._connection._more = counted  # type: ignore[method-assign]
            assert await reply.next_burst(b"END\n") == b"abcEND\n"
            assert woken <= 2
            assert await reply.next_burst(b"END\n") == b"moreEND\n"
            assert await reply.next_burst(b"END\n") is None
            reply.close()

    asyncio.run(main())


def test_a_burst_larger_than_what_may_wait_comes_in_parts_and_none_is_lost() -> None:
    body = b"x" * (5 * MOST_WAITING) + b"END"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        await asyncio.sleep(5)

    async def main() -> None:
        async with scripted(script) as upstream, asyncio.timeout(4):
            reply = await upstream.post("/v1/x", b"{}")
            parts = []
            while (part := await reply.next_burst(b"END")) is not None:
                parts.append(part)
            assert b"".join(parts) == body
            reply.close()

    asyncio.run(main())


@pytest.mark.parametrize("late", [True, False])
def test_a_burst_that_breaks_off_or_is_late_is_a_fault(late: bool) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"half"))
        await writer.drain()
        await asyncio.sleep(5 if late else 0.1)

    async def main() -> None:
        async with scripted(script) as upstream, asyncio.timeout(4):
            reply = await upstream.post("/v1/x", b"{}", monotonic() + 0.3)
            with pytest.raises(UpstreamLate if late else UpstreamFault):
                await reply.next_burst(b"END")
            reply.close()

    asyncio.run(main())


def test_leaving_a_reply_early_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await reader.read()  # returns at the end of the connection
        gone.set()

    async def main() -> None:
        async with scripted(script) as upstream:
            reply = await upstream.post("/v1/x", b"{}")
            assert await reply.next_piece() == b"hello"
            reply.close()
            await asyncio.wait_for(gone.wait(), 2)

    asyncio.run(main())


def test_a_request_given_up_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        await reader.read()
        gone.set()

    async def main() -> None:
        async with scripted(script) as upstream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await asked(upstream)
            await asyncio.wait_for(gone.wait(), 2)

    asyncio.run(main())


def test_a_reader_that_is_slow_makes_the_engine_wait_instead_of_the_memory_grow() -> None:
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        nonlocal sent
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        for _ in range(100):
            writer.write(b"x" * 1_000_000)
            await writer.drain()
            sent += 1

    async def main() -> None:
        async with scripted(script) as upstream:
            reply = await upstream.post("/v1/x", b"{}")
            await reply.next_piece()
            await asyncio.sleep(0.3)
            assert sent < 40, sent
            rest = 0
            while (piece := await reply.next_piece()) is not None:
                rest += len(piece)
            assert rest > 50_000_000
            reply.close()

    asyncio.run(main())


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"])
def test_a_reply_that_is_not_whole_at_its_deadline_ends_there(first: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(first)
        await asyncio.sleep(30)

    async def main() -> None:
        async with scripted(script) as upstream:
            began = monotonic()
            with pytest.raises(UpstreamLate):
                await (await upstream.post("/v1/x", b"{}", began + 0.2)).read()
            assert monotonic() - began < 1

    asyncio.run(main())


def test_a_reply_of_which_enough_is_known_gives_its_connection_back_when_its_last_bytes_come() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            await request_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(b"0\r\n\r\n")

    async def main() -> None:
        async with scripted(script) as upstream:
            for _ in range(3):
                reply = await upstream.post("/v1/x", b"{}")
                assert await reply.next_piece() == b"hello"
                reply.finish()
                reply.close()
                await asyncio.sleep(0.15)
            assert upstream.opened() == 1

    asyncio.run(main())


def test_nobody_listening_is_said_with_the_address() -> None:
    async def main() -> None:
        with pytest.raises(UpstreamFault, match=r"127\.0\.0\.1:9"):
            await Upstream("http://127.0.0.1:9").post("/v1/x", b"{}")

    asyncio.run(main())


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x", "http://", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected http"):
        Upstream(url)


def test_a_header_cannot_carry_a_second_one() -> None:
    with pytest.raises(ValueError, match="line end"):
        Upstream("http://127.0.0.1:80", {"authorization": "Bearer x\r\nhost: other"})
