"""Promises to OpenAI's own client and to LangChain: what they do elsewhere they can do here, with the real engine."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from potstill.contract import Contract
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.serving.hostile import fault_of_schema
from potstill.serving.input_settings import InputSettings
from potstill.serving.run import RunningServer, running_server
from potstill.serving.settings import ServeSettings
from tests.serving.bad_requests import schema_of
from tests.serving.conftest import LABELS
from tests.serving.test_start import copy_of

SCHEMA: Json = {
    "type": "object",
    "properties": {"mood": {"type": "string", "enum": list(LABELS)}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
}
HELLO: Any = [{"role": "user", "content": "The battery died after two days."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Mood(BaseModel):
    """The same as SCHEMA, in the words of another library."""

    mood: Literal["negative", "neutral", "positive"]
    sure: bool


def serving(artifact: Path, folder: Path, task: Json, **settings: Any) -> Iterator[RunningServer]:
    def other(contract: Contract) -> Contract:
        return replace(contract, task=task, prompt_rule=PromptRule().to_json(), max_tokens=64)

    changed = copy_of(artifact, folder / "artifact", other)
    asked = ServeSettings(port=0, slots=2, threads=1, capture=None, **settings)
    with running_server(changed, asked, "student", folder / "capture") as running:
        yield running


@pytest.fixture(scope="module")
def labels(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    task = {"kind": "classification", "labels": list(LABELS)}
    yield from serving(artifact, tmp_path_factory.mktemp("labels"), task)


@pytest.fixture(scope="module")
def words(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    settings = {"input": InputSettings(max_choices=4), "request_timeout_s": 20.0}
    yield from serving(artifact, tmp_path_factory.mktemp("words"), {"kind": "generation"}, **settings)


@pytest.fixture(scope="module")
def objects(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    yield from serving(artifact, tmp_path_factory.mktemp("objects"), {"kind": "extraction", "schema": SCHEMA})


@pytest.fixture(scope="module")
def callers(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    yield from serving(artifact, tmp_path_factory.mktemp("callers"), {"kind": "tool_calls"})


def client(server: RunningServer, **options: Any) -> openai.OpenAI:
    usual = {"base_url": server.base_url, "api_key": "none", "max_retries": 0, "timeout": 30}
    return openai.OpenAI(**(usual | options))


def test_several_choices_come_in_one_answer_and_interleave_in_a_stream(words: RunningServer) -> None:
    with client(words) as found:
        asked: Any = {"model": "m", "messages": HELLO, "max_tokens": 12, "n": 3, "temperature": 1.2, "seed": 7}
        answer = found.chat.completions.create(**asked)
        one = found.chat.completions.create(**asked | {"n": 1})
        texts = [each.message.content for each in answer.choices]
        assert [each.index for each in answer.choices] == [0, 1, 2]
        assert len(set(texts)) > 1
        assert texts[0] == one.choices[0].message.content  # each choice has a seed of its own, the first one's is ours
        assert answer.usage is not None
        assert one.usage is not None
        assert answer.usage.prompt_tokens == one.usage.prompt_tokens
        assert answer.usage.completion_tokens > one.usage.completion_tokens
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        chunks = list(found.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        pieces: dict[int, str] = {}
        for chunk in chunks:
            for choice in chunk.choices:
                pieces[choice.index] = pieces.get(choice.index, "") + (choice.delta.content or "")
        assert [pieces[at] for at in range(3)] == texts
        assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
        ended = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        assert sorted(ended) == [0, 1, 2]
        with pytest.raises(openai.BadRequestError, match="n: found 5, expected at most 4"):
            found.chat.completions.create(**asked | {"n": 5})


def test_labels_come_for_every_choice(labels: RunningServer) -> None:
    with client(labels) as found:
        answer = found.chat.completions.create(model="m", messages=HELLO, n=4, temperature=2.0)
        assert {each.message.content for each in answer.choices} <= set(LABELS)


def test_log_probabilities_come_whole_and_streamed_alike(words: RunningServer) -> None:
    asked: Any = {"model": "m", "messages": HELLO, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    with client(words) as found:
        whole = found.chat.completions.create(**asked).choices[0]
        assert whole.logprobs is not None
        tokens = whole.logprobs.content or []
        assert "".join(each.token for each in tokens) == whole.message.content
        assert all(each.logprob <= 0 and len(each.top_logprobs) == 3 for each in tokens)
        streamed = [
            each
            for chunk in found.chat.completions.create(**asked, stream=True)
            for choice in chunk.choices
            for each in ((choice.logprobs.content if choice.logprobs else None) or [])
        ]
        assert [each.token for each in streamed] == [each.token for each in tokens]
        # the engine decodes both in batches of its own making: equal to rounding, not to the bit
        assert [each.logprob for each in streamed] == pytest.approx([each.logprob for each in tokens], abs=0.02)
        with pytest.raises(openai.BadRequestError, match="top_logprobs: only allowed with logprobs"):
            found.chat.completions.create(model="m", messages=HELLO, top_logprobs=2)


def test_stops_end_an_answer_and_seeds_repeat_it(words: RunningServer) -> None:
    with client(words) as found:
        asked: Any = {"model": "m", "messages": HELLO, "max_tokens": 24}
        whole = found.chat.completions.create(**asked).choices[0].message.content or ""
        stop = whole.split()[3]
        cut = found.chat.completions.create(**asked, stop=[stop]).choices[0]
        assert cut.message.content == whole[: whole.index(stop)]
        assert cut.finish_reason == "stop"
        drawn = [
            found.chat.completions.create(**asked, temperature=1.5, seed=seed).choices[0].message.content
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]


def test_structured_answers_parse_into_the_callers_own_class(objects: RunningServer) -> None:
    with client(objects) as found:
        parsed = found.chat.completions.parse(model="m", messages=HELLO, response_format=Mood).choices[0].message.parsed
        assert isinstance(parsed, Mood)
        with found.chat.completions.stream(model="m", messages=HELLO, response_format=Mood) as stream:
            for _ in stream:
                pass
            assert stream.get_final_completion().choices[0].message.parsed == parsed

        class Other(BaseModel):
            price: int

        with pytest.raises(openai.BadRequestError, match="response_format"):
            found.chat.completions.parse(model="m", messages=HELLO, response_format=Other)


def test_any_schema_is_written_where_the_task_is_free(words: RunningServer) -> None:
    with client(words) as found:
        answer = found.chat.completions.parse(model="m", messages=HELLO, response_format=Mood, max_tokens=40)
        assert answer.choices[0].message.parsed is not None
        plain = found.chat.completions.create(
            model="m", messages=HELLO, response_format={"type": "json_object"}, max_tokens=60
        )
        assert (plain.choices[0].message.content or "").lstrip().startswith("{")


def test_tools_are_called_plain_and_streamed(callers: RunningServer) -> None:
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": "The weather in Rome?"}], "tools": [WEATHER]}
    asked |= {"tool_choice": "required", "max_tokens": 60}
    with client(callers) as found:
        choice = found.chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls is not None
        call: Any = choice.message.tool_calls[0]
        assert call.function.name == "weather"
        assert set(json.loads(call.function.arguments)) == {"city"}
        with found.chat.completions.stream(**asked) as stream:
            done = [each for each in stream if each.type == "tool_calls.function.arguments.done"]
            final = stream.get_final_completion().choices[0]
        assert [each.name for each in done] == ["weather"]
        assert final.message.tool_calls is not None
        assert final.message.tool_calls[0].function.arguments == call.function.arguments
        turns: Any = [
            *asked["messages"], choice.message.to_dict(),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny, 24 degrees"},
        ]  # fmt: skip
        again = found.chat.completions.create(model="m", messages=turns, tools=[WEATHER], max_tokens=10)
        assert again.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_the_older_text_completions_answer_in_their_own_shape(words: RunningServer) -> None:
    with client(words) as found:
        chat = found.chat.completions.create(model="m", messages=HELLO, max_tokens=10)
        asked: Any = {"model": "m", "prompt": HELLO[0]["content"], "max_tokens": 10}
        text = found.completions.create(**asked, logprobs=2)
        assert text.object == "text_completion"
        assert text.choices[0].text == chat.choices[0].message.content
        assert text.choices[0].logprobs is not None
        assert "".join(text.choices[0].logprobs.tokens or []) == text.choices[0].text
        assert text.choices[0].logprobs.text_offset == [
            sum(len(token) for token in (text.choices[0].logprobs.tokens or [])[:at])
            for at in range(len(text.choices[0].logprobs.tokens or []))
        ]
        chunks = list(found.completions.create(**asked, stream=True))
        assert "".join(each.choices[0].text for each in chunks) == text.choices[0].text
        with pytest.raises(openai.BadRequestError, match="echo: not supported here"):
            found.completions.create(**asked, echo=True)


def test_models_are_listed_and_found_by_name(words: RunningServer) -> None:
    with client(words) as found:
        assert [each.id for each in found.models.list()] == ["student"]
        assert found.models.retrieve("student").id == "student"
        with pytest.raises(openai.NotFoundError, match="served here: student"):
            found.models.retrieve("gpt-5")


def test_embeddings_of_an_engine_without_them_are_404(words: RunningServer) -> None:
    with client(words) as found, pytest.raises(openai.NotFoundError, match="gives no embeddings"):
        found.embeddings.create(model="student", input="hello")


def test_the_async_client_streams_and_answers_together(words: RunningServer) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=words.base_url, api_key="none", max_retries=0) as found:
            asked: Any = {"model": "m", "messages": HELLO, "max_tokens": 8}
            plain, stream = await asyncio.gather(
                found.chat.completions.create(**asked), found.chat.completions.create(**asked, stream=True)
            )
            pieces = [each.choices[0].delta.content or "" async for each in stream if each.choices]
            assert "".join(pieces) == plain.choices[0].message.content

    asyncio.run(main())


LONG: Any = {"model": "m", "messages": HELLO, "max_tokens": 400, "logit_bias": {"0": -100, "2": -100}}


def idle(server: RunningServer, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        slots = httpx.get(f"{server.engine.url}/slots").json()
        if not any(each["is_processing"] for each in slots):
            return True
        time.sleep(0.02)
    return False


def test_a_client_that_times_out_or_cancels_frees_its_slots(words: RunningServer) -> None:
    with client(words, timeout=0.4) as hasty, pytest.raises(openai.APITimeoutError):
        hasty.chat.completions.create(**LONG, n=2)
    assert idle(words, 1.0)

    async def cancelled() -> None:
        async with openai.AsyncOpenAI(base_url=words.base_url, api_key="none", max_retries=0) as found:
            asking = asyncio.create_task(found.chat.completions.create(**LONG))
            await asyncio.sleep(0.3)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(cancelled())
    assert idle(words, 1.0)
    with client(words) as found:
        stream = found.chat.completions.create(**LONG, stream=True)
        next(iter(stream))
        stream.close()
    assert idle(words, 1.0)


def test_faults_are_the_exceptions_that_callers_catch(words: RunningServer) -> None:
    with client(words) as found:
        too_long: Any = [{"role": "user", "content": "word " * 3000}]
        with pytest.raises(openai.BadRequestError) as refused:
            found.chat.completions.create(model="m", messages=too_long)
        assert refused.value.code == "context_length_exceeded"
        assert refused.value.param == "messages"
        with pytest.raises(openai.BadRequestError) as refused:
            found.chat.completions.create(model="m", messages=HELLO, temperature=9)
        assert refused.value.param == "temperature"
        with pytest.raises(openai.APIStatusError) as large:
            found.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 2_000_000}])
        assert large.value.status_code == 413
        with pytest.raises(openai.NotFoundError):
            found.get("/nothing", cast_to=object)
        with pytest.raises(openai.APIStatusError) as wrong:
            found.get("/chat/completions", cast_to=object)
        assert wrong.value.status_code == 405


def test_the_client_tries_again_when_the_answer_says_after_how_long() -> None:
    """A server of one refusal and one answer, since the real one refuses only under load."""
    from potstill.serving.errors import RequestRefused

    refusal = RequestRefused(429, "too many requests", kind="requests", code="rate_limit_exceeded", retry_after_s=1)
    seen: list[float] = []

    def serve(listening: socket.socket) -> None:
        for _ in range(2):
            peer, _ = listening.accept()
            with peer:
                peer.recv(65536)
                seen.append(time.monotonic())
                if len(seen) == 1:
                    body, head = json.dumps(refusal.body()).encode(), "429 Too Many Requests\r\nretry-after: 1"
                else:
                    body, head = b'{"object":"list","data":[]}', "200 OK"
                peer.sendall(
                    f"HTTP/1.1 {head}\r\ncontent-type: application/json\r\nconnection: close\r\n"
                    f"content-length: {len(body)}\r\n\r\n".encode()
                    + body
                )

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=1) as found:
            assert found.models.list().data == []
        thread.join(5)
    assert 0.9 < seen[1] - seen[0] < 3


def test_langchain_invokes_and_streams(words: RunningServer) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    chat = langchain.ChatOpenAI(model="student", base_url=words.base_url, api_key="none", max_tokens=8, temperature=0)
    answer = chat.invoke("Say hello")
    assert answer.usage_metadata["output_tokens"] > 0
    pieces = list(chat.stream("Say hello"))
    assert "".join(each.content for each in pieces) == answer.content


def test_langchain_binds_tools_and_reads_structured_answers(callers: RunningServer, objects: RunningServer) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    options = {"model": "student", "api_key": "none", "max_tokens": 60, "temperature": 0}
    agent = langchain.ChatOpenAI(base_url=callers.base_url, **options).bind_tools([WEATHER], tool_choice="required")
    answer = agent.invoke("The weather in Rome?")
    assert answer.tool_calls[0]["name"] == "weather"
    reader = langchain.ChatOpenAI(base_url=objects.base_url, **options).with_structured_output(Mood)
    assert isinstance(reader.invoke("The battery died."), Mood)


@pytest.mark.slow
def test_what_the_door_lets_through_neither_hangs_nor_breaks_the_engine(words: RunningServer) -> None:
    """Schemas that mean harm, drawn by a seed: each is refused, or answered within the time of a request."""
    draw, seen, statuses, slowest = random.Random(11), set[str](), Counter[int](), 0.0
    while sum(statuses.values()) < int(os.environ.get("POTSTILL_SCHEMAS", "150")):
        schema = schema_of(draw)
        key = json.dumps(schema, sort_keys=True)
        if not isinstance(schema, dict) or key in seen or fault_of_schema(schema, 64_000):
            continue
        seen.add(key)
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        body = {"model": "m", "messages": HELLO, "max_tokens": 6, "response_format": wanted}
        began = time.monotonic()
        reply = httpx.post(f"{words.base_url}/chat/completions", json=body, timeout=60)
        slowest = max(slowest, time.monotonic() - began)
        statuses[reply.status_code] += 1
        assert reply.status_code in (200, 400), (schema, reply.text)
    print(dict(statuses), f"slowest {slowest:.1f} s")
    good = {"model": "m", "messages": HELLO, "max_tokens": 4}
    assert httpx.post(f"{words.base_url}/chat/completions", json=good, timeout=60).status_code == 200
