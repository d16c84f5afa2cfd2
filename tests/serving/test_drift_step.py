"""`serve.drift` in a running server: what is counted, what it costs on the way, and what alarms."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from potstill.contract import Contract
from potstill.errors import RecipeError
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.serving import route
from potstill.serving.backends import Address
from potstill.serving.call import Call
from potstill.serving.capture import CaptureLog
from potstill.serving.drift_step import Drift, make
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.large import LargeSettings
from potstill.serving.meter import Meter
from potstill.serving.order import ORDER
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.serving.steps import Step
from potstill.watching.settings import CheckSettings, DriftSettings, WebhookSettings
from potstill.watching.webhooks import send_all, signature
from tests.serving.test_steps_and_fleet import asked
from tests.unit.watch_place import LABELS, artifact_folder, task, text_of


class Answering(Step):
    """In the engine's place: gives the label that it is told to."""

    def __init__(self) -> None:
        self.say: str | None = None

    async def before(self, call: Call) -> None:
        label = self.say or next(label for label in LABELS if label in call.marks.get("label", LABELS[0]))
        message = {"role": "assistant", "content": label}
        call.response = {
            "id": call.id, "object": "chat.completion", "created": 1, "usage": {},
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }  # fmt: skip
        call.answered_by = "engine"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact_folder(tmp_path_factory.mktemp("drift") / "artifact", "1")


def server_with(
    folder: Path, drift: DriftSettings, log: CaptureLog | None = None, **more: Any
) -> tuple[Server, Drift, Answering]:
    contract = Contract.read(folder)
    served = Served(folder, "a" * 64, "scripted", folder / "model.gguf", contract, task(), PromptRule())
    answering = Answering()
    settings = ServeSettings(drift=drift, **more)
    at = ORDER.index(route.make) + 1
    server = Server(
        Fleet(Deployment("m", served, Address("http://127.0.0.1:9", "m"))), settings,
        [*ORDER[:at], lambda _: answering, *ORDER[at:]], log=log, meter=Meter(),
    )  # fmt: skip
    step = next(each for each in server.plan.steps if isinstance(each, Drift))
    return server, step, answering


async def ask_all(server: Server, answering: Answering, count: int, frame: str = "{}", say: str | None = None) -> None:
    for at in range(24_000, 24_000 + count):
        words, label = text_of(at * 7)
        answering.say = say or label
        status, _ = await asked(server, messages=[{"role": "user", "content": frame.format(words)}])
        assert status == 200


async def counted(step: Drift, count: int) -> None:
    for _ in range(600):
        monitor = next(iter(step.monitors.values()), None)
        if monitor is not None and monitor.features["length"].stream.total >= count:  # type: ignore[union-attr]
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not counted")


FAST = DriftSettings(every_s=3600, most_per_s=100_000, window=100)


def test_off_is_no_step() -> None:
    assert make(Server(Fleet(), ServeSettings(), [])) is None


def test_like_traffic_is_quiet_and_other_traffic_is_shown_in_the_metrics(folder: Path) -> None:
    async def main() -> tuple[list[Json], list[Json], bytes]:
        server, step, answering = server_with(folder, FAST)
        await server.start()
        await ask_all(server, answering, 300)
        await counted(step, 300)
        quiet = step.look()
        await ask_all(server, answering, 200, frame="{} " + "and then " * 12, say="fee")
        await counted(step, 500)
        loud = step.look()
        step.look()
        await server.close()
        return quiet, loud, server.meter.text()

    quiet, loud, text = asyncio.run(main())
    assert [each["feature"] for each in quiet if each["alarm"]] == []
    assert {"answer", "length"} <= {each["feature"] for each in loud if each["alarm"]}
    lines = text.decode().splitlines()
    assert 'potstill_drift_alarm{artifact="aaaaaaaaaaaa",feature="answer"} 1.0' in lines
    assert 'potstill_drift_alarm{artifact="aaaaaaaaaaaa",feature="turns"} 0.0' in lines
    assert 'potstill_drift_alarms_total{feature="answer"} 1.0' in lines  # told once, not at every look
    assert "potstill_drift_counted_total 500.0" in lines


def test_beyond_its_allowance_it_counts_no_more_and_says_how_many(folder: Path) -> None:
    async def main() -> bytes:
        server, _, answering = server_with(folder, FAST.model_copy(update={"most_per_s": 1.0}))
        await server.start()
        await ask_all(server, answering, 50)
        await server.close()
        return server.meter.text()

    lines = asyncio.run(main()).decode().splitlines()
    passed = next(x for x in lines if x.startswith("potstill_drift_passed_over_total"))
    assert float(passed.split()[1]) >= 40


def test_settings_may_be_read_again_while_it_counts(folder: Path) -> None:
    async def main() -> None:
        server, _, answering = server_with(folder, FAST)
        await server.start()
        await ask_all(server, answering, 5)
        await server.reload(ServeSettings(drift=FAST.model_copy(update={"alpha": 0.05})))
        await server.close()

    asyncio.run(main())


def test_feedback_that_comes_later_is_counted_for_the_version_that_answered(folder: Path, tmp_path: Path) -> None:
    async def main() -> Json:
        meter = Meter()
        log = CaptureLog(tmp_path / "captured", meter, sample=1.0, durable=False, redact=None)
        server, step, answering = server_with(folder, FAST.model_copy(update={"settle": 40}), log)
        await server.start()
        answering.say = "fee"
        for at in range(160):
            _, body = await asked(server, messages=[{"role": "user", "content": text_of(at)[0]}])
            wanted = "fee" if at < 60 else "card"
            opinion = {"kind": "correction", "name": "", "value": wanted, "time": None, "by": "x"}
            log.put("feedback", {"id": json.loads(body)["id"], "feedback": opinion}, sync=False).result()
        await counted(step, 160)
        told = step.look()
        await server.close()
        log.close()
        return next(each for each in told if each["feature"] == "feedback")

    told = asyncio.run(main())
    assert told["count"] == 120
    assert told["alarm"]["what"] in ("badly", "all but well")
    assert told["alarm"]["share_before"] == 0


def test_what_stands_on_the_way_of_a_request_is_small(folder: Path) -> None:
    async def main() -> float:
        server, step, answering = server_with(folder, FAST)
        await ask_all(server, answering, 1)
        call = await _call_of(server)
        took = []
        for _ in range(3):
            step._notes.clear()
            start = time.perf_counter()
            for _ in range(1000):
                await step.after(call)
            took.append((time.perf_counter() - start) / 1000)
        return min(took)

    took = asyncio.run(main())
    print(f"drift: {took * 1e6:.1f} us a call")
    assert took < 200e-6  # a tenth of that on a quiet machine


async def _call_of(server: Server) -> Call:
    call = Call(None, server.plan)  # type: ignore[arg-type]
    call.deployment = server.current
    call.body = {"messages": [{"role": "user", "content": text_of(3)[0] * 4}]}
    call.upstream = {"messages": call.body["messages"]}
    call.response = {"choices": [{"message": {"role": "assistant", "content": "card"}}]}
    return call


# The large model is asked about a sample


class Large(BaseHTTPRequestHandler):
    """Streams one label to every question; counts them."""

    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["content-length"]))
        chunk = {"choices": [{"index": 0, "delta": {"content": "loan"}, "finish_reason": "stop"}]}
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def large() -> Iterator[str]:
    Large.asked = 0
    with HTTPServer(("127.0.0.1", 0), Large) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/v1"
        listening.shutdown()


def test_a_share_of_the_answers_is_held_against_the_large_model_up_to_the_days_limit(folder: Path, large: str) -> None:
    async def main() -> bytes:
        drift = FAST.model_copy(update={"check": CheckSettings(share=0.5, most_per_day=10)})
        server, step, answering = server_with(folder, drift, large=LargeSettings(url=large, model="big"))
        await server.start()
        for at in range(60):
            answering.say = "loan" if at % 2 else "card"
            await asked(server, messages=[{"role": "user", "content": text_of(at)[0]}])
            await asyncio.sleep(0.005)
        for _ in range(100):
            if Large.asked >= 10:
                break
            await asyncio.sleep(0.05)
        await counted(step, 60)
        await server.close()
        return server.meter.text()

    text = asyncio.run(main()).decode()
    assert Large.asked == 10
    of = {x.split()[0]: float(x.split()[1]) for x in text.splitlines() if x.startswith("potstill_drift_checks_total")}
    assert sum(of.values()) == 10
    assert of['potstill_drift_checks_total{outcome="differs"}'] >= 1


# Webhooks


class Hook(BaseHTTPRequestHandler):
    """Refuses twice, then takes; keeps what came."""

    came: list[tuple[dict[str, str], bytes]]
    refuse: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        type(self).came.append((dict(self.headers), body))
        self.send_response(type(self).refuse.pop(0) if type(self).refuse else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hook() -> Iterator[str]:
    Hook.came, Hook.refuse = [], []
    with HTTPServer(("127.0.0.1", 0), Hook) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/alarms"
        listening.shutdown()


def test_a_webhook_is_signed_and_sent_again_until_it_is_taken(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    Hook.refuse = [503, 429]
    rests: list[float] = []
    settings = WebhookSettings(url=hook, secret="HOOK_SECRET")
    assert send_all([settings], "drift", {"feature": "length"}, rests.append) == 1
    assert len(Hook.came) == 3
    assert len({body for _, body in Hook.came}) == 1  # one event with one id
    headers, body = Hook.came[-1]
    given = {key.lower(): value for key, value in headers.items()}["x-potstill-signature"]
    moment = given.partition(",")[0].removeprefix("t=")
    wanted = hmac.new(b"s3cret", f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
    assert given == f"t={moment},v1={wanted}" == signature("s3cret", int(moment), body)
    assert rests[1] > 0.5 * rests[0] > 0


def test_a_webhook_that_says_no_is_not_asked_again_and_never_raises(hook: str) -> None:
    Hook.refuse = [400]
    assert send_all([WebhookSettings(url=hook)], "drift", {}, lambda _: None) == 0
    assert len(Hook.came) == 1
    nobody = WebhookSettings(url="http://127.0.0.1:9/", attempts=2, timeout_s=1)
    assert send_all([nobody], "drift", {}, lambda _: None) == 0


def test_a_secret_that_is_not_set_is_refused_at_start(folder: Path) -> None:
    drift = DriftSettings(webhooks=(WebhookSettings(url="http://127.0.0.1:9/", secret="NOT_SET_HERE"),))
    with pytest.raises(RecipeError, match="NOT_SET_HERE is not set"):
        server_with(folder, drift)
