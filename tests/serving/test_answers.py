"""Promises about answers that the small model cannot be made to give: the real application before a scripted engine."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from potstill.contract import Contract
from potstill.engine import Engine
from potstill.errors import DamagedLine
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.serving.app import App
from potstill.serving.capture import CaptureLog
from potstill.serving.captured import join
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.meter import Meter
from potstill.serving.order import ORDER
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.serving.supervise import SupervisedEngine
from potstill.tasks import task_from

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
SPOKEN = 'Let me look.\n<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


class ScriptedEngine(ThreadingHTTPServer):
    """Answers every request with the same deltas; `breaks` closes the connection before [DONE]. Keeps what it got."""

    def __init__(self, deltas: list[str], breaks: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Scripted)
        self.deltas, self.breaks = deltas, breaks
        self.got: list[Json] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Scripted(BaseHTTPRequestHandler):
    server: ScriptedEngine

    def do_POST(self) -> None:
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for delta in self.server.deltas:
            self._event({"choices": [{"index": 0, "delta": {"content": delta}, "finish_reason": None}]})
        if self.server.breaks:
            return
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: Json) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")

    def log_message(self, format: str, *words: Any) -> None: ...


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Something that is alive, since an engine is a process."""
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield started
    started.kill()
    started.wait()


class Door:
    """The application for one task before one script; requests are sent in-process."""

    def __init__(
        self, task: Json, script: ScriptedEngine, process: subprocess.Popen[bytes], folder: Path, **settings: Any
    ) -> None:
        contract = Contract(task, "", ["<|im_end|>"], PromptRule().to_json(), 32, 512)
        served = Served(folder, "d" * 64, "scripted", folder / "none", contract, task_from(task), PromptRule())
        engine = Engine(script.url, folder / "none", 1, 512, process, folder / "log")
        self.script = script
        self.log = CaptureLog(folder / "capture", Meter(), sample=1.0, durable=True, redact=None)
        self.engine = SupervisedEngine(lambda: engine)
        fleet = Fleet(Deployment("name@1", served, self.engine))
        self.app = App(Server(fleet, ServeSettings(**settings), ORDER, log=self.log))
        threading.Thread(target=script.serve_forever, daemon=True).start()

    def ask(self, **body: Any) -> httpx.Response:
        return asyncio.run(self._ask({"model": "m", "messages": [{"role": "user", "content": "Rome?"}]} | body))

    async def _ask(self, body: Json) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test") as client:
            reply = await client.post("/v1/chat/completions", json=body)
        self.engine.hang_up()  # connections belong to one event loop, and each request here has its own
        return reply

    def close(self) -> None:
        self.log.close()
        self.script.shutdown()
        self.script.server_close()


@pytest.fixture
def door(request: pytest.FixtureRequest, process: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[Door]:
    task, script, settings = request.param
    opened = Door(task, ScriptedEngine(*script), process, tmp_path, **settings)
    yield opened
    opened.close()


def events(reply: httpx.Response) -> list[Any]:
    texts = [each.removeprefix("data: ") for each in reply.text.split("\n\n") if each]
    return [each if each == "[DONE]" else json.loads(each) for each in texts]


def case(task: Json, *script: Any, **settings: Any) -> tuple[Json, tuple[Any, ...], dict[str, Any]]:
    return task, script, settings


CALLS = case({"kind": "tool_calls"}, [SPOKEN[:20], SPOKEN[20:]])
WORDS = case({"kind": "generation"}, ["line\u2028", "separator\x85 ", "☕"])


@pytest.mark.parametrize("door", [CALLS], indirect=True)
def test_tool_calls_are_unpacked_the_same_plain_and_streamed(door: Door) -> None:
    choice = door.ask(tools=[TOOL]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me look."
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"city": "Rome"})
    assert door.script.got[0]["tools"] == [TOOL]
    first, last, done = events(door.ask(tools=[TOOL], stream=True))
    assert first["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **choice["message"]["tool_calls"][0]}]
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert done == "[DONE]"


@pytest.mark.parametrize("door", [WORDS], indirect=True)
def test_odd_line_separators_in_an_answer_do_not_break_the_stream(door: Door) -> None:
    expected = "line\u2028separator\x85 ☕"
    assert door.ask().json()["choices"][0]["message"]["content"] == expected
    chunks = events(door.ask(stream=True))[:-1]
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks) == expected


@pytest.mark.parametrize("door", [case({"kind": "generation"}, ["half an"], True)], indirect=True)
def test_a_broken_answer_is_an_error_never_a_short_answer(door: Door) -> None:
    assert door.ask().status_code == 503
    chunk, error = events(door.ask(stream=True))
    assert chunk["choices"][0]["delta"]["content"] == "half an"
    assert error["error"]["code"] == "engine_unavailable"
    assert not list(join(door.log.folder))


@pytest.mark.parametrize("door", [WORDS], indirect=True)
def test_a_durable_server_gives_no_answer_that_it_could_not_capture(door: Door) -> None:
    shutil.rmtree(door.log.folder)
    assert door.ask().json()["error"]["code"] == "capture_failed"
    assert events(door.ask(stream=True))[-1]["error"]["code"] == "capture_failed"


@pytest.mark.parametrize("door", [case({"kind": "extraction", "schema": SCHEMA}, ['{"city":"Rome"}'])], indirect=True)
def test_a_response_format_is_taken_when_the_task_writes_it_anyway(door: Door) -> None:
    same = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    other = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {}}}}
    assert door.ask(response_format=same).status_code == 200
    assert door.ask(response_format={"type": "json_object"}).status_code == 200
    assert door.ask(response_format=other).json()["error"]["param"] == "response_format"
    assert all(each["json_schema"] == SCHEMA for each in door.script.got)


@pytest.mark.parametrize("door", [WORDS], indirect=True)
def test_what_was_evaluated_is_what_is_decoded_unless_asked_otherwise(door: Door) -> None:
    door.ask()
    door.ask(temperature=0.7, max_completion_tokens=100_000, stop="END", seed=-1)
    plain, asked = door.script.got
    assert (plain["temperature"], plain["max_tokens"], plain["stop"]) == (0.0, 32, ["<|im_end|>"])
    assert (asked["temperature"], asked["max_tokens"], asked["stop"]) == (0.7, 512, ["<|im_end|>", "END"])
    assert asked["seed"] == 2**32 - 1


def line(identity: str) -> Json:
    response = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}]}
    return {"id": identity, "request": {"messages": [{"role": "user", "content": "x"}]}, "response": response}


def test_captured_answers_are_known_after_a_restart_and_to_a_second_server(tmp_path: Path) -> None:
    first = CaptureLog(tmp_path, Meter(), sample=1.0, durable=True, redact=None)
    second = CaptureLog(tmp_path, Meter(), sample=1.0, durable=True, redact=None)
    first.put("exchanges", line("a"), sync=True).result()
    assert second.knows("a")
    first.put("exchanges", line("b"), sync=True).result()
    assert second.knows("b")
    assert not second.knows("c")
    second.put("feedback", {"id": "b", "feedback": {"kind": "thumbs", "value": True}}, sync=True).result()
    first.close()
    second.close()
    assert [(each.id, len(each.feedback)) for each in join(tmp_path)] == [("a", 0), ("b", 1)]


def test_every_line_that_waits_is_written_at_close(tmp_path: Path) -> None:
    log = CaptureLog(tmp_path, Meter(), sample=1.0, durable=False, redact=None)
    for at in range(500):
        log.put("exchanges", line(f"i{at}"), sync=False)
    log.close()
    assert [each.id for each in join(tmp_path)] == [f"i{at}" for at in range(500)]


def test_the_sampled_share_is_captured(tmp_path: Path) -> None:
    log = CaptureLog(tmp_path, Meter(), sample=0.25, durable=False, redact=None)
    kept = sum(log.wants(f"chatcmpl-{at}") for at in range(4000))
    log.close()
    assert 850 < kept < 1150


def test_a_line_torn_by_a_kill_is_passed_over_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "exchanges-x.jsonl"
    path.write_text(json.dumps(line("a")) + "\n" + '{"id": "b", "requ')
    assert [each.id for each in join(tmp_path)] == ["a"]
    path.write_text('{"id": "b", "requ\n' + json.dumps(line("a")) + "\n")
    with pytest.raises(DamagedLine, match=r"exchanges-x\.jsonl:1: not JSON"):
        list(join(tmp_path))
