"""Promises of traces and the request log, against a real OTLP receiver and a scripted engine."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from distillation.connectors import detect
from distillation.connectors.base import NoCompanions
from potstill.contract import Contract
from potstill.errors import RecipeError
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.serving.app import App
from potstill.serving.backends import Address
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.order import ORDER
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.serving.traceparent import Trace
from potstill.tasks import task_from
from tests.serving.test_steps_and_fleet import TASK

pytest.importorskip("opentelemetry.sdk", reason="the extra `telemetry` is not installed")
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SAID = "My secret is zanzibar."


class Receiver(ThreadingHTTPServer):
    """A tiny OTLP receiver: keeps every span; an engine too, which keeps the headers that it was asked with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Any] = []
        self.requests: list[Any] = []
        self.asked: list[dict[str, str]] = []
        self.sent: list[dict[str, str]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            found = ExportTraceServiceRequest.FromString(body)
            self.server.requests.append(found)
            self.server.sent.append({name.lower(): value for name, value in self.headers.items()})
            self.server.spans += [s for r in found.resource_spans for scope in r.scope_spans for s in scope.spans]
            self._answer("application/x-protobuf", b"")
            return
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()})
        events: list[Json] = [
            {"choices": [{"index": 0, "delta": {"content": "blue"}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}},
        ]
        lines = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events)
        self._answer("text/event-stream", lines + b"data: [DONE]\n\n")

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *words: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.shutdown()
    found.server_close()


def server_before(engine: str, telemetry: Json | None, **more: Any) -> Server:
    contract = Contract(TASK, "", [], PromptRule().to_json(), 32, 512)
    served = Served(Path("none"), "d" * 64, "scripted", Path("none"), contract, task_from(TASK), PromptRule())
    settings = ServeSettings.model_validate({"telemetry": telemetry} | more)
    return Server(Fleet(Deployment("intents@3", served, Address(engine, "m"))), settings, ORDER)


def ask(server: Server, times: int = 1, headers: dict[str, str] | None = None, **body: Any) -> list[httpx.Response]:
    async def main() -> list[httpx.Response]:
        await server.start()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(App(server)), base_url="http://test") as client:
            message = {"model": "intents", "messages": [{"role": "user", "content": SAID}]} | body
            replies = [
                await client.post("/v1/chat/completions", json=message, headers=headers or {}) for _ in range(times)
            ]
        await server.close()
        return replies

    return asyncio.run(main())


def traces(receiver: Receiver, **more: Any) -> Json:
    return {"traces": {"url": f"{receiver.url}/v1/traces"} | more}


def says(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {each.key: plain(each.value) for each in span.attributes}


def test_off_by_default_nothing_is_measured_or_sent(receiver: Receiver) -> None:
    server = server_before(receiver.url, None)
    assert not any(type(each).__name__ == "Telemetry" for each in server.plan.steps)
    assert ask(server)[0].status_code == 200
    assert "traceparent" not in receiver.asked[0]
    assert "potstill_step_seconds_count" not in server.meter.text().decode()


def test_a_request_and_its_questions_are_spans_with_the_genai_conventions(receiver: Receiver) -> None:
    reply = ask(server_before(receiver.url, traces(receiver)), temperature=0.5, stop="END")[0]
    by_name = {each.name: each for each in receiver.spans}
    request, question = by_name["POST /v1/chat/completions"], by_name["chat intents@3"]
    assert question.trace_id == request.trace_id
    assert question.parent_span_id == request.span_id
    assert request.parent_span_id == b""
    assert (request.kind, question.kind) == (2, 3)  # SERVER, CLIENT
    assert request.start_time_unix_nano <= question.start_time_unix_nano
    assert question.end_time_unix_nano <= request.end_time_unix_nano
    assert abs(request.end_time_unix_nano / 1e9 - time.time()) < 60
    about = says(question)
    assert about["gen_ai.operation.name"] == "chat"
    assert about["gen_ai.request.model"] == "intents@3"
    assert (about["gen_ai.usage.input_tokens"], about["gen_ai.usage.output_tokens"]) == (5, 2)
    assert about["gen_ai.request.temperature"] == 0.5
    whole = says(request)
    assert whole["gen_ai.response.id"] == reply.json()["id"]
    assert whole["gen_ai.response.finish_reasons"] == ["stop"]
    assert whole["gen_ai.request.stop_sequences"] == ["END"]
    assert whole["http.response.status_code"] == 200
    assert whole["potstill.answered_by"] == "engine"
    resource = {
        each.key: each.value.string_value for each in receiver.requests[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "potstill"


def test_no_content_leaves_unless_it_is_asked_for(receiver: Receiver) -> None:
    ask(server_before(receiver.url, traces(receiver)), user="anna@example.com")
    sent = b"".join(each.SerializeToString() for each in receiver.requests)
    assert b"zanzibar" not in sent
    assert b"blue" not in sent
    assert b"anna" not in sent


def test_content_that_is_asked_for_is_read_by_our_own_connector_as_the_exchange_that_it_was(receiver: Receiver) -> None:
    from google.protobuf.json_format import MessageToDict

    messages = [{"role": "system", "content": "Answer with a colour."}, {"role": "user", "content": SAID}]
    ask(server_before(receiver.url, traces(receiver, content=True)), messages=messages)
    record = MessageToDict(receiver.requests[0])
    for resource in record["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            scope["spans"] = [each for each in scope["spans"] if each["name"].startswith("POST")]
    found = list(detect([record], "test").read(record, NoCompanions()))
    assert [each["request"]["messages"] for each in found] == [messages]
    assert found[0]["response"]["choices"][0]["message"]["content"] == "blue"
    assert found[0]["response"]["usage"]["completion_tokens"] == 2


def test_the_clients_trace_goes_on_to_the_engine_and_comes_back(receiver: Receiver) -> None:
    headers = {"traceparent": CLIENT, "tracestate": "vendor=1"}
    ask(server_before(receiver.url, traces(receiver, sample=0)), headers=headers)
    request = next(each for each in receiver.spans if each.name.startswith("POST"))
    assert request.trace_id.hex() == CLIENT.split("-")[1]
    assert request.parent_span_id.hex() == CLIENT.split("-")[2]
    handed = receiver.asked[0]["traceparent"].split("-")
    assert handed == ["00", CLIENT.split("-")[1], request.span_id.hex(), "01"]
    assert receiver.asked[0]["tracestate"] == "vendor=1"


def test_the_share_is_sampled_and_a_client_that_does_not_sample_is_obeyed(receiver: Receiver) -> None:
    drawn = [Trace.of("", "", 0.25) for _ in range(4000)]
    assert 850 < sum(each.sampled for each in drawn) < 1150
    assert len({each.trace for each in drawn}) == 4000
    server = server_before(receiver.url, traces(receiver, sample=1.0))
    ask(server, headers={"traceparent": CLIENT[:-2] + "00"})
    assert receiver.spans == []
    assert receiver.asked[0]["traceparent"].endswith("-00")


@pytest.mark.parametrize(
    "header",
    ["", "nonsense", "ff" + CLIENT[2:], CLIENT + "\r\nx: y", CLIENT.replace(CLIENT[3:35], "0" * 32),
     CLIENT[:-3], CLIENT.upper()],
)  # fmt: skip
def test_a_traceparent_that_is_none_begins_a_new_trace(header: str) -> None:
    found = Trace.of(header, "a\r\nb: c", 1.0)
    assert found.parent == 0
    assert found.sampled
    assert found.lines().count("\r\n") == 1


def test_a_receiver_that_is_away_costs_no_answer_and_no_time(receiver: Receiver) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        server = server_before(
            receiver.url, {"traces": {"url": f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"}}
        )
        began = time.monotonic()
        replies = ask(server, times=20)
        assert all(each.status_code == 200 for each in replies)
        assert time.monotonic() - began < 30


def test_a_receiver_that_is_away_is_said_once_and_not_for_every_batch(
    receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("opentelemetry").handlers.clear()
    for _ in range(2):
        ask(server_before(receiver.url, {"traces": {"url": "http://127.0.0.1:9/v1/traces"}}))
    said = [each for each in capsys.readouterr().err.splitlines() if "span" in each or "refused" in each]
    assert len(said) == 1
    assert said[0].startswith("serve: telemetry.traces: ")


def test_headers_of_the_receiver_come_from_the_environment(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="OTEL_KEYS is not set; export"):
        server_before(receiver.url, traces(receiver, headers="OTEL_KEYS"))
    monkeypatch.setenv("OTEL_KEYS", "authorization=Bearer abc, x-team=one")
    ask(server_before(receiver.url, traces(receiver, headers="OTEL_KEYS")))
    assert receiver.sent[0]["authorization"] == "Bearer abc"
    assert receiver.sent[0]["x-team"] == "one"


def test_a_refused_request_is_a_span_and_a_line_too(receiver: Receiver, tmp_path: Path) -> None:
    server = server_before(receiver.url, traces(receiver) | {"log": str(tmp_path / "log" / "requests.jsonl")})
    assert ask(server, temperature="hot")[0].status_code == 400
    requests = [each for each in receiver.spans if each.name.startswith("POST")]  # a slow step may have a span too
    assert [says(each)["http.response.status_code"] for each in requests] == [400]
    line = json.loads((tmp_path / "log" / "requests.jsonl").read_text())
    assert (line["status"], line["model"]) == (400, None)


def test_the_log_has_a_line_a_request_without_content_or_user(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    price = {"student": {"input": 1.0, "output": 2.0}}
    server = server_before(receiver.url, {"log": str(path)}, prices=price)
    replies = ask(server, times=3, user="anna@example.com")
    lines = [json.loads(each) for each in path.read_text().splitlines()]
    assert [each["id"] for each in lines] == [each.json()["id"] for each in replies]
    assert lines[0].items() >= {
        "model": "intents@3", "version": "d" * 12, "answered_by": "engine", "status": 200, "prompt_tokens": 5,
        "completion_tokens": 2, "asked": ["student"], "cost_usd": 9e-6,
    }.items()  # fmt: skip
    assert 0 < lines[0]["ms"] < 30_000
    for word in ("zanzibar", "blue", "anna"):
        assert word not in path.read_text()
    err = io.StringIO()
    with redirect_stderr(err):
        ask(server_before(receiver.url, {"log": "stderr"}))
    assert json.loads(err.getvalue())["status"] == 200


def test_the_seconds_of_each_step_are_counted_when_asked_for(receiver: Receiver) -> None:
    server = server_before(receiver.url, {"steps": True})
    ask(server, times=2)
    text = server.meter.text().decode()
    assert 'potstill_step_seconds_count{moment="before",step="validate_input"} 2.0' in text
    assert 'potstill_step_seconds_count{moment="end",step="meter"} 2.0' in text
