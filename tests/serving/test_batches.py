"""Promises of files and batches, by OpenAI's own client: what goes in comes out, once, to its owner alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from potstill.records import Json
from potstill.serving.batches.results import Results
from potstill.serving.batches.runner import numbered
from potstill.serving.batches.settings import BatchSettings
from potstill.serving.run import RunningServer, running_server
from potstill.serving.settings import ServeSettings
from tests.serving.conftest import LABELS
from tests.serving.mock_door import MockDoor, mock_door

SETTINGS = BatchSettings(share=1.0, max_lines=400, max_file_bytes=200_000, max_files=12)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockDoor]:
    folder = tmp_path_factory.mktemp("batches")
    keys = folder / "keys.txt"
    keys.write_text("".join(f"{hashlib.sha256(each.encode()).hexdigest()} {each}\n" for each in ("anna", "bert")))
    with mock_door(folder, "--first-ms", "5", batches=SETTINGS, keys=(str(keys),)) as found:
        yield found


def client(door: MockDoor, key: str = "anna") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{door.url}/v1", api_key=key, max_retries=0, timeout=30)


def line(name: str, **body: Any) -> Json:
    asked = {"model": "m", "messages": [{"role": "user", "content": name}], **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": asked}


def packed(lines: list[Json]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in lines).encode()


def begun(found: openai.OpenAI, content: bytes, **more: Any) -> Any:
    file = found.files.create(file=("in.jsonl", content), purpose="batch")
    asked: Any = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"} | more
    return found.batches.create(**asked)


def ended(found: openai.OpenAI, batch: Any, within_s: float = 30) -> Any:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        batch = found.batches.retrieve(batch.id)
        if batch.status not in ("validating", "in_progress", "finalizing", "cancelling"):
            return batch
        time.sleep(0.05)
    raise AssertionError(f"still {batch.status} after {within_s:g} s: {batch.request_counts}")


def lines_of(found: openai.OpenAI, file_id: str | None) -> list[Json]:
    assert file_id is not None
    return [json.loads(each) for each in found.files.content(file_id).text.splitlines()]


def test_a_file_comes_back_as_it_was_sent_and_goes_when_told(door: MockDoor) -> None:
    with client(door) as found:
        content = packed([line("a")]) + b"\r\n\xff--x\r\n"
        file = found.files.create(file=("my file.jsonl", content), purpose="batch")
        assert (file.bytes, file.filename, file.purpose) == (len(content), "my file.jsonl", "batch")
        assert found.files.content(file.id).read() == content
        assert found.files.retrieve(file.id).id == file.id
        assert file.id in [each.id for each in found.files.list()]
        assert found.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            found.files.content(file.id)
        assert found.files.create(file=("empty", b""), purpose="batch").bytes == 0


def test_every_request_is_answered_once_under_its_own_name(door: MockDoor) -> None:
    with client(door) as found:
        lines = [line(f"r{at}") for at in range(300)]
        lines[7]["body"]["temperature"] = "hot"
        batch = begun(found, packed(lines), metadata={"job": "x"})
        assert batch.status == "validating"
        done = ended(found, batch)
        assert (done.status, done.metadata) == ("completed", {"job": "x"})
        counts = done.request_counts
        assert (counts.total, counts.completed, counts.failed) == (300, 299, 1)
        answers = lines_of(found, done.output_file_id)
        assert sorted(each["custom_id"] for each in answers) == sorted(f"r{at}" for at in range(300) if at != 7)
        assert all(each["response"]["body"]["choices"][0]["message"]["content"] for each in answers)
        assert len({each["response"]["body"]["id"] for each in answers}) == 299
        (fault,) = lines_of(found, done.error_file_id)
        assert (fault["custom_id"], fault["response"]["status_code"]) == ("r7", 400)
        assert fault["response"]["body"]["error"]["param"] == "temperature"
        assert done.id in [each.id for each in found.batches.list(limit=5)]


def test_pages_follow_one_another(door: MockDoor) -> None:
    with client(door) as found:
        batches = [begun(found, packed([line(f"p{at}")])).id for at in range(3)]
        seen = [each.id for each in found.batches.list(limit=1)]
        assert seen[:3] == batches[::-1]
        with pytest.raises(openai.BadRequestError, match="limit"):
            found.batches.list(limit=5000)
        anna = {"authorization": "Bearer anna"}
        for query in ("limit=", "order=", "order=up"):
            assert httpx.get(f"{door.url}/v1/files?{query}", headers=anna).status_code == 400, query
        for each in batches:
            ended(found, found.batches.retrieve(each))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "holds no request"),
        (b"{nonsense\n", "not JSON"),
        (packed([line("a"), line("a")]), "stands in a line before"),
        (packed([line("a") | {"url": "/v1/embeddings"}]), "expected /v1/chat/completions"),
        (packed([line("a") | {"method": "GET"}]), "expected POST"),
        (packed([line("a", stream=True)]), "answered whole"),
        (packed([line(f"{at}") for at in range(401)]), "more than 400 requests"),
    ],
)
def test_a_file_that_is_no_batch_fails_before_it_begins_and_says_where(
    door: MockDoor, content: bytes, fault: str
) -> None:
    with client(door) as found:
        file = found.files.create(file=("in.jsonl", content), purpose="batch")
        asked: Any = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        done = ended(found, found.batches.create(**asked))
        assert done.status == "failed"
        assert done.errors is not None
        assert done.errors.data is not None
        assert fault in (done.errors.data[0].message or "")
        found.files.delete(file.id)


def test_nothing_of_one_owner_is_there_for_another(door: MockDoor) -> None:
    with client(door) as anna, client(door, "bert") as bert:
        batch = begun(anna, packed([line("secret")]))
        done = ended(anna, batch)
        ids = [done.input_file_id, done.output_file_id]
        asked: Any = {"input_file_id": ids[0], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        theirs: list[Any] = [
            lambda: bert.batches.retrieve(batch.id), lambda: bert.batches.cancel(batch.id),
            lambda: bert.batches.create(**asked),
            *(lambda each=each: bert.files.content(each) for each in ids),
            *(lambda each=each: bert.files.retrieve(each) for each in ids),
            *(lambda each=each: bert.files.delete(each) for each in ids),
        ]  # fmt: skip
        for look in theirs:
            with pytest.raises(openai.NotFoundError):
                look()
        assert list(bert.batches.list()) == []
        assert list(bert.files.list()) == []
        assert lines_of(anna, ids[1])[0]["custom_id"] == "secret"
        found = httpx.get(f"{door.url}/v1/batches")
        assert found.status_code == 401


def test_bounds_of_size_and_number_are_kept(door: MockDoor) -> None:
    with client(door, "bert") as found:
        with pytest.raises(openai.APIStatusError) as large:
            found.files.create(file=("in.jsonl", b"x" * 200_001), purpose="batch")
        assert large.value.status_code == 413
        with pytest.raises(openai.BadRequestError, match="purpose"):
            found.files.create(file=("in.jsonl", b"x"), purpose="fine-tune")
        kept = [found.files.create(file=("in.jsonl", b"x"), purpose="batch").id for _ in range(12)]
        with pytest.raises(openai.APIStatusError, match="delete some"):
            found.files.create(file=("in.jsonl", b"x"), purpose="batch")
        for each in kept:
            found.files.delete(each)
    left = [each.name for each in (door.server.state_dir / "batches").iterdir() if each.suffix in (".part", ".form")]
    assert left == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"no form"),
        ("multipart/form-data; boundary=x", b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nabc'),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nabc\r\n--x--"),
        ("multipart/form-data; boundary=x", b"--x\r\na: b\r\n\r\n1\r\n" * 20 + b"--x--"),
    ],
)
def test_a_body_that_is_no_form_is_refused(door: MockDoor, kind: str, body: bytes) -> None:
    headers = {"authorization": "Bearer anna", "content-type": kind}
    assert httpx.post(f"{door.url}/v1/files", content=body, headers=headers).status_code == 400


def test_a_cancelled_batch_keeps_what_was_answered(tmp_path: Path) -> None:
    with mock_door(tmp_path, "--first-ms", "40", batches=SETTINGS, slots=2) as slow, client(slow) as found:
        batch = begun(found, packed([line(f"c{at}") for at in range(400)]))
        end = time.monotonic() + 20
        while not found.batches.retrieve(batch.id).request_counts.completed and time.monotonic() < end:
            time.sleep(0.1)
        assert found.batches.cancel(batch.id).status == "cancelling"
        done = ended(found, batch)
        assert done.status == "cancelled"
        assert 0 < len(lines_of(found, done.output_file_id)) == done.request_counts.completed < 400
        with pytest.raises(openai.ConflictError):
            found.batches.cancel(batch.id)


def test_what_is_not_answered_in_time_expires_and_the_rest_is_kept(tmp_path: Path) -> None:
    brief = BatchSettings(window_h=2 / 3600, share=0.5)
    with mock_door(tmp_path, "--first-ms", "40", batches=brief, slots=2) as slow, client(slow) as found:
        done = ended(found, begun(found, packed([line(f"e{at}") for at in range(300)])))
        assert done.status == "expired"
        answered, not_answered = lines_of(found, done.output_file_id), lines_of(found, done.error_file_id)
        assert answered
        assert {each["error"]["code"] for each in not_answered} == {"batch_expired"}
        assert len({each["custom_id"] for each in answered + not_answered}) == 300


def test_live_requests_come_first(tmp_path: Path) -> None:
    """With both slots taken by live streams no line is begun; when they end, the batch goes on."""
    with mock_door(
        tmp_path, "--every-ms", "300", "--tokens", "8", batches=SETTINGS, slots=2, request_timeout_s=30
    ) as slow:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with client(slow) as found, httpx.Client(timeout=30) as live:
            with (
                live.stream("POST", f"{slow.url}/v1/chat/completions", json=body) as one,
                live.stream("POST", f"{slow.url}/v1/chat/completions", json=body) as two,
            ):
                batch = begun(found, packed([line("later")]))
                time.sleep(1.2)
                assert found.batches.retrieve(batch.id).request_counts.completed == 0
                assert slow.server.current.held == 2
                one.read()
                two.read()
            assert ended(found, batch).request_counts.completed == 1


def test_batches_are_off_unless_asked_for(tmp_path: Path) -> None:
    with mock_door(tmp_path) as plain, client(plain) as found:
        with pytest.raises(openai.NotFoundError, match=r"serve\.batches"):
            found.batches.list()
        assert not (tmp_path / "state" / "batches").exists()


def test_lines_are_numbered_as_they_stand_and_long_ones_end(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"a\n\n  \nb\n" + b"c" * 10)
    assert list(numbered(path)) == [(0, b"a\n"), (3, b"b\n"), (4, b"c" * 10)]
    assert list(numbered(tmp_path / "none")) == []


def test_the_real_engine_answers_a_batch(artifact: Path, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, slots=2, threads=1, batches=SETTINGS)
    folder = tmp_path / "work" / "captured" / "m"
    with running_server(artifact, settings, "m", folder) as running, client_of(running) as found:
        done = ended(found, begun(found, packed([line(f"r{at}") for at in range(8)])), 60)
        answers = lines_of(found, done.output_file_id)
        assert {each["response"]["body"]["choices"][0]["message"]["content"] for each in answers} <= set(LABELS)
        assert len(answers) == 8


def client_of(running: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.base_url, api_key="none", max_retries=0)


def test_an_answer_that_is_being_written_when_its_batch_is_cancelled_is_counted(tmp_path: Path) -> None:
    async def cancelled_in_the_middle() -> Results:
        results = Results(tmp_path / "good", tmp_path / "bad")
        write = results._write

        def slowly(batch: list[tuple[bool, Json]]) -> None:
            time.sleep(0.05)
            write(batch)

        results._write = slowly  # type: ignore[method-assign]
        adding = [asyncio.create_task(results.add(True, {"id": f"batch_req_x_{at}"})) for at in range(5)]
        await asyncio.sleep(0.02)
        for each in adding:
            each.cancel()
        await asyncio.gather(*adding, return_exceptions=True)
        await results.settle()
        return results

    results = asyncio.run(cancelled_in_the_middle())
    lines = (tmp_path / "good").read_text().splitlines()
    assert len(lines) == results.counts["good"] == 5
