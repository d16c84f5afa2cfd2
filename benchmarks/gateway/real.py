"""The real engine with and without the gateway in front: tokens a second over the same questions, in turn."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from benchmarks.gateway.policies import bodies
from benchmarks.record import WORK, Record
from potstill.cores import usable_cores
from potstill.engine import Engine
from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.constrain import constrain
from potstill.serving.http import Http
from potstill.serving.prompt_step import strip_instructions
from potstill.serving.run import running_server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served, load_artifact
from potstill.serving.steps import Plan
from potstill.serving.upstream import Upstream

SLOTS = 4


def compare(record: Record, artifact: Path, turns: int, requests: int) -> None:
    """The same answers, as many slots and threads; both engines stay loaded and are asked in turn, `requests` a turn.

    A turn is seconds, so that what else the machine does meets both alike; the share is of all tokens by all seconds.
    """
    threads = usable_cores()
    served = load_artifact(artifact)
    asked = [json.loads(each) for each in bodies(count=turns * requests)]
    settings = ServeSettings(port=0, slots=SLOTS, threads=threads)
    ours, bare = [], []
    with (
        running_server(artifact, settings, "model", record_folder()) as server,
        Engine.start(served.model, parallel=SLOTS, context=served.contract.window, threads=threads) as engine,
    ):
        for at in range(turns):
            turn = asked[at * requests : (at + 1) * requests]
            ways = [
                lambda turn=turn: ours.append(asyncio.run(rate(server.url, turn))),
                lambda turn=turn: bare.append(asyncio.run(rate(engine.url, [upstream(each, served) for each in turn]))),
            ]
            for way in ways if at % 2 else reversed(ways):
                way()
    record.figure("real engine through the gateway", ours, "tokens/s")
    record.figure("real engine, bare", bare, "tokens/s")
    share = sum(1 / each for each in bare) / sum(1 / each for each in ours)
    record.check("real engine: through the gateway / bare", share, at_least=0.97)


def record_folder() -> Path:
    folder = WORK / "gateway" / "captured"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def upstream(body: Json, served: Served) -> Json:
    """What the gateway sends to the engine for this body: stripped, bounded and with the task's grammar."""
    call = Call(Http({}, None, None), Plan.of([]), body=body)
    strip_instructions(call, served.rule)
    constrain(call, served.contract, served.task.constraint())
    return call.upstream


async def rate(url: str, asked: list[Json]) -> float:
    """Tokens a second, read and written, with `SLOTS` questions at a time."""
    client = Upstream(url)
    waiting = list(asked)
    tokens = 0

    async def one() -> None:
        nonlocal tokens
        while waiting:
            reply = await client.post("/v1/chat/completions", json.dumps(waiting.pop()).encode())
            usage = json.loads(await reply.read())["usage"]
            reply.close()
            tokens += usage["prompt_tokens"] + usage["completion_tokens"]

    begun = time.monotonic()
    await asyncio.gather(*(one() for _ in range(SLOTS)))
    client.close()
    return tokens / (time.monotonic() - begun)
