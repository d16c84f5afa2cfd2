"""Promises of the completers, with scripted and recorded answers and a real HTTP server on loopback."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.completers import Completion, CompletionRequest
from potstill.completers.grammar import choices_grammar
from potstill.completers.http import HttpCompleter
from potstill.completers.recorded import RecordedCompleter
from potstill.completers.scripted import ScriptedCompleter
from potstill.errors import RecipeError
from potstill.tasks.base import Constraint

Reply = tuple[int, dict[str, str], Any]


class Upstream:
    """A server that answers by a function of the body and how often that body's first message was seen."""

    def __init__(self, reply: Callable[[str, dict[str, Any], int], Reply]) -> None:
        self.seen: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    earlier = sum(path == self.path and old == body for path, old, _ in outer.seen)
                    outer.seen.append((self.path, body, dict(self.headers)))
                status, headers, answer = reply(self.path, body, earlier)
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Silent: a test's output is its own."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def upstream() -> Iterator[Callable[[Callable[[str, dict[str, Any], int], Reply]], Upstream]]:
    started: list[Upstream] = []

    def start(reply: Callable[[str, dict[str, Any], int], Reply]) -> Upstream:
        started.append(Upstream(reply))
        return started[-1]

    yield start
    for each in started:
        each.close()


Start = Callable[[Callable[[str, dict[str, Any], int], Reply]], Upstream]


def ask(identity: str, text: str | None = None, **more: Any) -> CompletionRequest:
    return CompletionRequest(identity, [{"role": "user", "content": text or identity}], **more)


def said(text: str) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }


def test_http_answers_come_in_the_order_of_the_requests_whatever_finishes_first(upstream: Start) -> None:
    released = threading.Event()

    def reply(_: str, body: dict[str, Any], __: int) -> Reply:
        text = body["messages"][0]["content"]
        if text == "r0":
            assert released.wait(10)
        elif text == "r7":
            released.set()
        return 200, {}, said(text.upper())

    completer = HttpCompleter(f"{upstream(reply).url}/v1", "m", concurrency=4)
    found = list(completer.complete([ask(f"r{at}") for at in range(8)]))
    completer.close()
    assert [each.id for each in found] == [f"r{at}" for at in range(8)]
    assert [each.text for each in found] == [f"R{at}" for at in range(8)]
    assert all(each.prompt_tokens == 7 and each.completion_tokens == 2 and each.error is None for each in found)
    assert all(each.latency_ms is not None and each.latency_ms > 0 for each in found)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_http_tries_again_when_the_server_is_busy(upstream: Start, status: int) -> None:
    server = upstream(lambda _, __, earlier: (status, {}, "busy") if earlier < 2 else (200, {}, said("ok")))
    found = list(HttpCompleter(server.url, "m", attempts=3, backoff_s=0.001).complete([ask("a")]))
    assert [each.text for each in found] == ["ok"]
    assert len(server.seen) == 3


def test_http_waits_as_long_as_the_server_asks(upstream: Start) -> None:
    server = upstream(
        lambda _, __, earlier: (429, {"Retry-After": "0.2"}, "later") if earlier == 0 else (200, {}, said("ok"))
    )
    import time

    start = time.monotonic()
    found = list(HttpCompleter(server.url, "m", backoff_s=0.0).complete([ask("a")]))
    assert found[0].text == "ok"
    assert time.monotonic() - start >= 0.2
    assert found[0].latency_ms is not None
    assert found[0].latency_ms < 200, "the pause is not the server's latency"


def test_http_gives_an_error_for_the_failed_request_alone(upstream: Start) -> None:
    def reply(_: str, body: dict[str, Any], __: int) -> Reply:
        text = body["messages"][0]["content"]
        return {"bad": (400, {}, "too long"), "odd": (200, {}, {"choices": []}), "text": (200, {}, "<html>")}.get(
            text, (200, {}, said("fine"))
        )

    server = upstream(reply)
    found = list(HttpCompleter(server.url, "m").complete([ask(name) for name in ("ok", "bad", "odd", "text", "ok2")]))
    assert [each.error is None for each in found] == [True, False, False, False, True]
    assert "400" in str(found[1].error)
    assert "too long" in str(found[1].error)
    assert len(server.seen) == 5, "what cannot pass is not tried again"


def test_http_gives_an_error_when_attempts_run_out(upstream: Start) -> None:
    server = upstream(lambda *_: (503, {}, "down"))
    found = list(HttpCompleter(server.url, "m", attempts=2, backoff_s=0.001).complete([ask("a")]))
    assert "503" in str(found[0].error)
    assert len(server.seen) == 2


def test_http_gives_an_error_when_nobody_listens_and_when_the_answer_is_late(upstream: Start) -> None:
    release = threading.Event()

    def reply(*_: object) -> Reply:
        release.wait(5)
        return 200, {}, said("late")

    server = upstream(reply)
    late = list(HttpCompleter(server.url, "m", attempts=1, timeout_s=0.1).complete([ask("a")]))
    release.set()
    assert "Timeout" in str(late[0].error)
    gone = upstream(lambda *_: (200, {}, said("x")))
    gone.close()
    lost = list(HttpCompleter(gone.url, "m", attempts=2, backoff_s=0.001).complete([ask("a")]))
    assert "Connect" in str(lost[0].error)


def test_http_sends_the_key_from_the_environment_and_refuses_to_start_without(
    upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = upstream(lambda *_: (200, {}, said("ok")))
    monkeypatch.setenv("UPSTREAM_KEY", "sesame")
    list(HttpCompleter(server.url, "m", api_key_env="UPSTREAM_KEY").complete([ask("a")]))
    assert server.seen[0][2]["Authorization"] == "Bearer sesame"
    monkeypatch.delenv("UPSTREAM_KEY")
    with pytest.raises(RecipeError, match="UPSTREAM_KEY"):
        HttpCompleter(server.url, "m", api_key_env="UPSTREAM_KEY")


def test_http_says_a_constraint_in_the_words_of_the_server(upstream: Start) -> None:
    server = upstream(lambda *_: (200, {}, said("{}")))
    choices = Constraint("choices", choices=("yes", "no"))
    schema = Constraint("json_schema", schema={"type": "object"})
    requests = [ask("choices", constraint=choices), ask("schema", constraint=schema)]
    list(HttpCompleter(server.url, "m", concurrency=1).complete(requests))
    list(HttpCompleter(server.url, "m", concurrency=1, dialect="llama_cpp").complete(requests))
    openai_choices, openai_schema, llama_choices, llama_schema = (body for _, body, _ in server.seen)
    assert openai_choices.keys().isdisjoint({"grammar", "json_schema", "response_format", "cache_prompt"})
    assert openai_schema["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert llama_choices["grammar"] == 'root ::= "yes" | "no"'
    assert llama_schema["json_schema"] == {"type": "object"}
    assert llama_schema["cache_prompt"] is True


def test_http_keeps_tool_calls_in_the_message(upstream: Start) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "book", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    server = upstream(lambda *_: (200, {}, {"choices": [{"message": message, "finish_reason": "tool_calls"}]}))
    tools = [{"type": "function", "function": {"name": "book"}}]
    found = list(HttpCompleter(server.url, "m").complete([ask("a", tools=tools, seed=3, stop=("END",))]))
    assert found[0].text == ""
    assert found[0].message == message
    assert found[0].finish_reason == "tool_calls"
    sent = server.seen[0][1]
    assert (sent["tools"], sent["seed"], sent["stop"]) == (tools, 3, ["END"])


def test_recorded_answers_by_id_and_names_what_is_missing() -> None:
    kept = Completion("b", "positive", latency_ms=812.0, prompt_tokens=340)
    found = list(RecordedCompleter({"b": kept}).complete([ask("a"), ask("b")]))
    assert found[1] is kept
    assert found[0].id == "a"
    assert "not among the 1 recorded" in str(found[0].error)


def test_scripted_answers_in_order_and_fails_where_told() -> None:
    completer = ScriptedCompleter(lambda request: request.messages[0]["content"].upper(), fails={"b"})
    found = list(completer.complete([ask("a"), ask("b"), ask("c")]))
    assert [each.text for each in found] == ["A", "", "C"]
    assert [each.error is None for each in found] == [True, False, True]
    assert [each.id for each in completer.asked] == ["a", "b", "c"]


def test_scripted_list_at_its_end_is_an_error_not_a_crash() -> None:
    found = list(ScriptedCompleter(["one"]).complete([ask("a"), ask("b")]))
    assert found[0].text == "one"
    assert "IndexError" in str(found[1].error)


def language(grammar: str) -> list[str]:
    """The texts that a grammar of plain alternatives allows, read by llama.cpp's published escapes."""
    escapes = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
    assert grammar.startswith("root ::= ")
    texts, rest = [], grammar.removeprefix("root ::= ")
    while True:
        literal = re.match(r'"((?:[^"\\]|\\.)*)"', rest)
        assert literal is not None, rest
        pieces = re.findall(r"\\u([0-9A-F]{4})|\\U([0-9A-F]{8})|\\(.)|(.)", literal[1], re.DOTALL)
        texts.append(
            "".join(chr(int(u or v, 16)) if u or v else escapes[e] if e else plain for u, v, e, plain in pieces)
        )
        rest = rest[literal.end() :]
        if not rest:
            return texts
        assert rest.startswith(" | "), rest
        rest = rest[3:]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, unique=True))
def test_grammar_allows_exactly_the_choices_whatever_they_contain(choices: list[str]) -> None:
    grammar = choices_grammar(choices)
    assert language(grammar) == choices
    assert "\n" not in grammar, "a bare line end would end the rule"


def test_grammar_of_real_labels_is_plain_to_read() -> None:
    assert choices_grammar(["reverted_card_payment?", 'say "no"', "a\nb"]) == (
        'root ::= "reverted_card_payment?" | "say \\"no\\"" | "a\\nb"'
    )
    with pytest.raises(ValueError, match="no choices"):
        choices_grammar([])
