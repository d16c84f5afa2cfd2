"""A server with caches before an engine of this process: nothing is sent over a socket, every question is counted."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import orjson

from potstill.contract import Contract
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.serving.app import App
from potstill.serving.call import Call
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.order import ORDER
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.serving.steps import Plan, Step
from potstill.serving.upstream import UpstreamFault, UpstreamLate
from potstill.tasks import task_from

TENANTS, QUESTIONS = 20, 25
Answer = Callable[[Json], str | None]


class InProcessEngine:
    """A backend whose answer to a body is `answer(body)` after `after_s`; None breaks the connection."""

    dialect = "llama_cpp"
    restarts = 0
    ready = True

    def __init__(self, answer: Answer, after_s: float = 0.0, finish: str = "stop", cached_tokens: int = 0) -> None:
        self.answer, self.after_s, self.finish, self.cached_tokens = answer, after_s, finish, cached_tokens
        self.got: list[Json] = []
        self.left = 0

    @property
    def upstream(self) -> InProcessEngine:
        return self

    async def post(self, path: str, body: bytes, deadline: float = inf) -> _Reply:
        found = orjson.loads(body)
        self.got.append(found)
        left_s = max(0.0, deadline - monotonic())
        try:
            await asyncio.sleep(min(self.after_s, left_s))
        except asyncio.CancelledError:
            self.left += 1
            raise
        if self.after_s > left_s:
            self.left += 1
            raise UpstreamLate("late")
        text = self.answer(found)
        if text is None:
            raise UpstreamFault("gone")
        return _Reply(self, text)

    def hang_up(self) -> None: ...

    async def watch(self) -> None:
        await asyncio.Event().wait()

    def stop(self) -> None: ...


class _Reply:
    status = 200
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, engine: InProcessEngine, text: str) -> None:
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        details = {"prompt_tokens_details": {"cached_tokens": engine.cached_tokens}} if engine.cached_tokens else {}
        chunks = [
            {"created": 1, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]},
            {"created": 1, "choices": [{"index": 0, "delta": {}, "finish_reason": engine.finish}]},
            {"created": 1, "choices": [], "usage": usage | details},
        ]
        events = b"".join(b"data: " + orjson.dumps(each) + b"\n\n" for each in chunks)
        self.unread = [events + b"data: [DONE]\n\n"]

    async def next_piece(self) -> bytes | None:
        return self.unread.pop() if self.unread else None

    async def next_burst(self, end: bytes) -> bytes | None:
        return await self.next_piece()

    def finish(self) -> None: ...

    def close(self) -> None: ...


def deployment(engine: InProcessEngine, task: Json | None = None, name: str = "m@1", digest: str = "d") -> Deployment:
    definition = task or {"kind": "generation"}
    contract = Contract(definition, "", [], PromptRule().to_json(), 32, 512)
    served = Served(
        Path("none"), digest * 64, "scripted", Path("none"), contract, task_from(definition), PromptRule()
    )  # fmt: skip
    return Deployment(name, served, engine)


class Cached:
    """`async with Cached(engine, cache={...}) as server: await server.ask(...)`."""

    def __init__(
        self, engine: InProcessEngine, *, task: Json | None = None, state_dir: Path | None = None, first: Any = (),
        after: Any = (), **settings: Any,
    ) -> None:  # fmt: skip
        order = [*first, *ORDER[:-2], *after, *ORDER[-2:]]
        self.engine = engine
        self.server = Server(
            Fleet(deployment(engine, task)), ServeSettings.model_validate(settings), order, state_dir=state_dir
        )  # fmt: skip
        self.app = App(self.server)

    async def __aenter__(self) -> Cached:
        await self.server.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.server.close()

    async def ask(self, text: str | None = None, headers: Json | None = None, **body: Any) -> Got:
        messages = {"messages": [{"role": "user", "content": text}]} if text is not None else {}
        return await self.send(json.dumps({"model": "m"} | messages | body).encode(), headers)

    async def send(self, raw: bytes, headers: Json | None = None, left: asyncio.Event | None = None) -> Got:
        """`left` set is a client that hangs up."""
        sent: list[Any] = []
        unread = [{"type": "http.request", "body": raw}]

        async def receive() -> Any:
            if unread:
                return unread.pop()
            await (left or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        lines = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": lines}
        await self.app(scope, receive, send)
        return Got(sent)

    def metric(self, name: str, **labels: str) -> float:
        return self.server.meter.registry.get_sample_value(name, labels) or 0.0


class Got:
    def __init__(self, sent: list[Any]) -> None:
        self.status = sent[0]["status"] if sent else 0
        self.headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]} if sent else {}
        self.raw = b"".join(each.get("body", b"") for each in sent[1:])

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def cache(self) -> str | None:
        return self.headers.get("x-potstill-cache")

    @property
    def text(self) -> str:
        """What the assistant said, whole or in a stream."""
        if not self.raw.startswith(b"data:"):
            return str(self.body["choices"][0]["message"]["content"])
        lines = [each.removeprefix("data: ") for each in self.raw.decode().strip().split("\n\n")]
        assert lines[-1] == "[DONE]"
        choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


class Tenant(Step):
    """Stands for the authentication: the tenant is what a header says."""

    async def before(self, call: Call) -> None:
        call.tenant = call.http.header(b"x-tenant")

    @classmethod
    def make(cls, _: Server) -> Step:
        return cls()


class Named(Step):
    """Lets the engine know the tenant, so that its answer tells for whom it was made."""

    async def before(self, call: Call) -> None:
        call.upstream["messages"][-1]["content"] += f" for {call.tenant}"


async def leaks(server: Cached, probes: int) -> int:
    """How many of so many questions of TENANTS tenants, a thousand at a time, got what was not made for the asker."""
    steps = list(server.server.plan.steps)
    at = next(at for at, each in enumerate(steps) if type(each).__name__ == "Constrain")
    server.server.plan = Plan.of([*steps[:at], Named(), *steps[at:]])
    draw = random.Random(1)

    async def probe(at: int) -> bool:
        tenant, text = f"tenant{draw.randrange(TENANTS)}", f"question {draw.randrange(QUESTIONS)}"
        got = await server.ask(text, {"x-tenant": tenant}, stream=at % 5 == 0)
        return got.text != f"{text} for {tenant}!"

    wrong = 0
    for start in range(0, probes, 1000):
        wrong += sum(await asyncio.gather(*(probe(at) for at in range(start, min(probes, start + 1000)))))
    return wrong
