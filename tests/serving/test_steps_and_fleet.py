"""Promises of the frame that steps stand in: order, an end that always comes, and swaps that nobody notices."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from potstill.contract import Contract
from potstill.prompt import PromptRule
from potstill.serving import route
from potstill.serving.app import App
from potstill.serving.backends import Address
from potstill.serving.call import Call
from potstill.serving.errors import RequestRefused
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.order import ORDER
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.serving.steps import Plan, Step
from potstill.tasks import task_from

TASK = {"kind": "generation"}


def deployment(name: str, digest: str = "d") -> Deployment:
    contract = Contract(TASK, "", [], PromptRule().to_json(), 32, 512)
    served = Served(Path("none"), digest * 64, "scripted", Path("none"), contract, task_from(TASK), PromptRule())
    return Deployment(name, served, Address("http://127.0.0.1:9", "m"))


class Noted(Step):
    """Writes down its moments; answers or refuses where told."""

    def __init__(self, name: str, notes: list[str], answers: bool = False, refuses: bool = False) -> None:
        self.name, self.notes, self.answers, self.refuses = name, notes, answers, refuses

    async def before(self, call: Call) -> None:
        self.notes.append(f"{self.name} before")
        if self.refuses:
            raise RequestRefused(429, "too many")
        if self.answers:
            message = {"role": "assistant", "content": "kept"}
            call.response = {
                "id": call.id, "object": "chat.completion", "created": 1, "usage": {},
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            }  # fmt: skip

    async def failed(self, call: Call, refused: RequestRefused) -> None:
        self.notes.append(f"{self.name} failed {refused.status}")

    async def after(self, call: Call) -> None:
        self.notes.append(f"{self.name} after")

    async def end(self, call: Call) -> None:
        self.notes.append(f"{self.name} end {call.status}")


async def asked(server: Server, **body: Any) -> tuple[int, bytes]:
    """One request through the application, in process."""
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]} | body).encode()
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
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:])


def server_of(*steps: Step) -> Server:
    makes = [lambda _, each=each: each for each in steps]
    behind = ORDER.index(route.make) + 1
    return Server(Fleet(deployment("m")), ServeSettings(), [*ORDER[:behind], *makes, *ORDER[behind:]])


def test_what_answers_on_the_way_in_ends_the_way() -> None:
    notes: list[str] = []
    server = server_of(Noted("a", notes), Noted("b", notes, answers=True), Noted("c", notes))
    status, body = asyncio.run(asked(server))
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "kept")
    assert notes == ["a before", "b before", "c end 200", "b end 200", "a end 200"]


def test_an_answer_that_is_there_already_streams_when_asked() -> None:
    _, body = asyncio.run(asked(server_of(Noted("b", [], answers=True)), stream=True))
    events = body.decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    deltas = [json.loads(each.removeprefix("data: "))["choices"][0]["delta"] for each in events[:-1]]
    assert "".join(each.get("content") or "" for each in deltas) == "kept"


def test_the_end_comes_to_every_step_when_one_refuses() -> None:
    notes: list[str] = []
    status, _ = asyncio.run(asked(server_of(Noted("a", notes), Noted("b", notes, refuses=True), Noted("c", notes))))
    assert status == 429
    assert notes == ["a before", "b before", "c end 429", "b end 429", "a end 429"]


def test_an_end_that_fails_keeps_no_other_step_from_its_own() -> None:
    class Broken(Step):
        async def end(self, call: Call) -> None:
            raise OSError("the disk is full")

    notes: list[str] = []
    server = server_of(Noted("a", notes, answers=True), Broken())
    assert asyncio.run(asked(server))[0] == 200
    assert notes == ["a before", "a end 200"]
    assert server.current.held == 0
    assert server.meter.in_flight._value.get() == 0


def test_steps_are_asked_for_help_when_the_engine_fails() -> None:
    notes: list[str] = []
    status, _ = asyncio.run(asked(server_of(Noted("a", notes))))  # nobody listens at the address
    assert status == 503
    assert notes == ["a before", "a failed 503", "a end 503"]


def test_a_moment_that_a_step_does_not_use_costs_no_call() -> None:
    class OnlyAfter(Step):
        async def after(self, call: Call) -> None: ...

    plan = Plan.of([OnlyAfter(), Step()])
    assert (len(plan.before), len(plan.after), len(plan.end), len(plan.holding)) == (0, 1, 0, 0)


def test_held_versions_end_only_when_nobody_holds_them() -> None:
    async def main() -> None:
        old, new = deployment("m@1"), deployment("m@2", "e")
        fleet = Fleet(old)
        await fleet.start()
        fleet.of("m").hold()
        swapping = asyncio.create_task(fleet.swap(new))
        await asyncio.sleep(0.01)
        assert fleet.of("m") is new
        assert fleet.draining == (old,)
        assert not swapping.done()
        old.release()
        await asyncio.wait_for(swapping, 1)
        assert fleet.draining == ()
        await fleet.close()

    asyncio.run(main())


def test_with_several_models_the_name_decides_and_an_unknown_one_is_404() -> None:
    fleet = Fleet(deployment("intents@3"), deployment("replies@1", "e"))
    assert fleet.of("replies").name == "replies@1"
    assert fleet.of("intents@2").name == "intents@3"
    with pytest.raises(RequestRefused, match="served here: intents@3, replies@1") as refused:
        fleet.of("gpt-5")
    assert refused.value.status == 404
    assert Fleet(deployment("intents@3")).of("gpt-5").name == "intents@3"


def test_settings_that_cannot_be_taken_leave_the_old_ones_in_force() -> None:
    def fussy(server: Server) -> Step | None:
        if server.settings.slots == 7:
            raise ValueError("seven")
        return None

    async def main() -> None:
        server = Server(Fleet(deployment("m")), ServeSettings(), [*ORDER, fussy])
        plan = server.plan
        with pytest.raises(ValueError, match="seven"):
            await server.reload(ServeSettings(slots=7))
        assert (server.plan, server.settings.slots) == (plan, 4)
        await server.reload(ServeSettings(max_body_bytes=10))
        assert (await asked(server))[0] == 413

    asyncio.run(main())
