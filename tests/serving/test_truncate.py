"""Promises of truncation: whole units, oldest first; what must stay stays; never silently."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from potstill.contract import Contract
from potstill.prompt import PromptRule
from potstill.records import Message
from potstill.serving.run import RunningServer, running_server
from potstill.serving.settings import ServeSettings
from potstill.serving.truncate import TruncateSettings, droppable, without, without_middle
from tests.serving.test_start import copy_of

SYSTEM: Message = {"role": "system", "content": "Be brief."}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def called(name: str) -> Message:
    call = {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def result(name: str) -> Message:
    return {"role": "tool", "tool_call_id": name, "content": f"result of {name}"}


AGENT = [
    SYSTEM, user("first"), called("a"), result("a"), result("a2"), said("done"),
    user("last"), called("b"), result("b"), called("c"), result("c"), called("d"), result("d"),
]  # fmt: skip


def test_a_call_goes_with_its_results_and_instructions_and_the_last_turn_stay() -> None:
    groups = droppable(AGENT)
    assert groups == [[1, 2, 3, 4, 5], [7, 8], [9, 10]]
    rest = without(AGENT, groups)
    assert rest == [SYSTEM, user("last"), called("d"), result("d")]
    for count in range(len(groups) + 1):
        kept = without(AGENT, groups[:count])
        calls = {each["tool_calls"][0]["id"] for each in kept if each.get("tool_calls")}
        assert {each["tool_call_id"][0] for each in kept if each["role"] == "tool"} == calls


def test_a_conversation_of_one_turn_has_nothing_to_leave_out() -> None:
    assert droppable([SYSTEM, user("only")]) == []
    assert droppable([said("no user at all")]) == []


def test_a_text_loses_its_middle_and_says_how_much() -> None:
    assert without_middle("abcdef", 6) == "abcdef"
    cut = without_middle("a" * 500 + "b" * 500, 100)
    assert cut == "a" * 50 + "\n[... 900 characters left out ...]\n" + "b" * 50


@pytest.fixture(scope="module")
def server(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("truncating")

    def free(contract: Contract) -> Contract:
        return replace(contract, task={"kind": "generation"}, prompt_rule=PromptRule().to_json(), window=192)

    settings = ServeSettings(port=0, slots=1, threads=1, capture=None, truncate=TruncateSettings())
    with running_server(copy_of(artifact, folder / "a", free), settings, "m", folder / "capture") as running:
        yield running


def ask(server: RunningServer, messages: list[Message], **more: Any) -> Any:
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        asked: Any = {"model": "m", "messages": messages, "max_tokens": 8} | more
        return client.chat.completions.with_raw_response.create(**asked)


def test_what_is_too_long_is_made_to_fit_and_the_client_is_told(server: RunningServer) -> None:
    short = ask(server, [SYSTEM, user("hello")])
    assert "x-potstill-truncated" not in short.headers
    turns = [each for at in range(20) for each in (user(f"question {at} " + "word " * 20), said(f"answer {at}"))]
    long = ask(server, [SYSTEM, *turns, user("And now?")])
    found = dict(each.split("=") for each in long.headers["x-potstill-truncated"].split(", "))
    assert 10 < int(found["turns"]) < 20
    assert found["characters"] == "0"
    usage = long.parse().usage
    assert 192 - 8 - 40 < usage.prompt_tokens <= 192 - 8  # as little as will do
    metrics = httpx.get(f"{server.url}/metrics").text
    assert f'potstill_truncated_total{{what="turns"}} {float(found["turns"])}' in metrics


def test_one_text_that_is_too_long_by_itself_keeps_both_its_ends(server: RunningServer) -> None:
    reply = ask(server, [SYSTEM, user("first"), said("ok"), user("word " * 1000)])
    found = dict(each.split("=") for each in reply.headers["x-potstill-truncated"].split(", "))
    assert found["turns"] == "1"
    assert 4_000 < int(found["characters"]) < 5_000
    assert 130 < reply.parse().usage.prompt_tokens <= 192 - 8
    streamed = ask(server, [user("word " * 1000)], stream=True)
    assert "characters=" in streamed.headers["x-potstill-truncated"]


def test_what_cannot_be_made_to_fit_is_refused_as_ever(server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, [{"role": "system", "content": "word " * 1000}, user("hello")])
    assert refused.value.code == "context_length_exceeded"
