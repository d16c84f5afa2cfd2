"""Promises of captured traffic where the disk refuses, lines wait for a group, or redaction trips."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill import captured_files
from potstill.captured_files import is_captured
from potstill.records import Json
from potstill.redaction import Redactor
from potstill.serving import appending, route
from potstill.serving.call import Call
from potstill.serving.capture import Bounds
from potstill.serving.captured import join
from potstill.serving.fleet import Fleet
from potstill.serving.meter import Meter
from potstill.serving.order import ORDER
from potstill.serving.redact_lines import FEW, RedactLines
from potstill.serving.rotation import rotate
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.steps import Step
from tests.serving.test_capture import ids, line, opened, opinion, read_by_distill, until
from tests.serving.test_steps_and_fleet import asked, deployment


class Disk:
    """`os` that refuses or writes half of the nth of an operation, and all after it while `lasting`."""

    def __init__(self, operation: str, at: int, half: bool = False, lasting: bool = False) -> None:
        self.operation, self.at, self.half, self.lasting, self.count = operation, at, half, lasting, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name != self.operation:
            return real

        def tried(*words: Any) -> Any:
            self.count += 1
            if self.count == self.at or (self.lasting and self.count > self.at):
                if self.half and name == "write":
                    return real(words[0], words[1][: max(1, len(words[1]) // 2)])
                raise OSError(28, "No space left on device")
            return real(*words)

        return tried


@pytest.mark.parametrize("operation", ["write", "fsync", "open", "ftruncate"])
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_a_disk_that_refuses_any_write_tears_no_line_and_loses_no_acknowledged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, lasting: bool, half: bool
) -> None:
    for at in range(1, 8):
        folder = tmp_path / str(at)
        disk = Disk(operation, at, half, lasting)
        with monkeypatch.context() as patch:
            patch.setattr(appending, "os", disk)
            patch.setattr(captured_files, "os", disk)
            log, acknowledged, refused = opened(folder), [], 0
            for number in range(8):
                try:
                    log.put("exchanges", line(f"i{number}"), sync=True).result(timeout=30)
                    acknowledged.append(f"i{number}")
                except OSError:
                    refused += 1
                    assert not log.knows(f"i{number}")
            log.close()
        assert ids(folder) == acknowledged
        assert read_by_distill(folder) == acknowledged if acknowledged else True
        if not lasting:
            assert refused <= 1, "the server did not go on"


def test_a_rotation_that_the_disk_refuses_anywhere_leaves_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for operation in ("fsync", "replace"):
        for at in range(1, 4):
            folder = tmp_path / f"{operation}{at}"
            folder.mkdir()
            (folder / "exchanges-1.jsonl").write_bytes(orjson.dumps(line("a")) + b"\n")
            with monkeypatch.context() as patch:
                patch.setattr(captured_files, "os", Disk(operation, at))
                with suppress(OSError):
                    rotate(folder, grace_s=1e9)
            assert ids(folder) == ["a"]
            rotate(folder, grace_s=0)
            rotate(folder, grace_s=0)
            assert ids(folder) == ["a"] == read_by_distill(folder)


def test_grouped_lines_are_on_the_disk_within_the_time_that_is_promised(tmp_path: Path) -> None:
    log = opened(tmp_path, durable=False, bounds=Bounds(group_s=0.2))
    for at in range(50):
        log.post("exchanges", line(f"i{at:02d}"))
    assert ids(tmp_path) == []
    assert until(lambda: len(ids(tmp_path)) == 50, within_s=5)
    log.close()


def test_feedback_is_never_on_the_disk_before_what_it_is_about(tmp_path: Path) -> None:
    log = opened(tmp_path, durable=False, bounds=Bounds(group_s=10))
    log.post("exchanges", line("a"))
    log.put("feedback", opinion("a"), sync=True).result(timeout=5)
    assert [(each.id, len(each.feedback)) for each in join(tmp_path)] == [("a", 1)]
    log.close()


TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["write to anna@example.com", "+1 415 555 0132", "4111 1111 1111 1111", "me@1", "sk-abcdef123456"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), copies=st.sampled_from([1, FEW + 1]))
def test_lines_redacted_together_are_those_redacted_alone(texts: list[str], copies: int) -> None:
    texts = texts * copies  # few are read one by one, many in one call
    lines = [line(f"i{at}", text, metadata={"user": text, "conversation": None}) for at, text in enumerate(texts)]
    together = [orjson.loads(each) for each in RedactLines(b"k").lines([orjson.dumps(each) for each in lines])]
    assert together == [Redactor(key=b"k").exchange(each) for each in lines]


def test_a_line_that_redaction_trips_over_is_lost_alone(tmp_path: Path) -> None:
    def fussy(each: Json) -> Json:
        if each["id"] == "b":
            raise ValueError("no")
        return each

    meter = Meter()
    log = opened(tmp_path, meter=meter, redact=fussy, bounds=Bounds(group_s=5))
    waiting = [log.put("exchanges", line(name), sync=False) for name in "abc"]
    log.close()
    assert ids(tmp_path) == ["a", "c"]
    assert isinstance(waiting[1].exception(), OSError)
    assert 'outcome="lost"} 1.0' in meter.text().decode()


def test_two_servers_that_rotate_one_folder_at_once_lose_nothing(tmp_path: Path) -> None:
    for at in range(8):
        (tmp_path / f"exchanges-{at}.jsonl").write_bytes(
            b"".join(orjson.dumps(line(f"i{at}-{each}")) + b"\n" for each in range(5))
        )
    threads = [threading.Thread(target=rotate, args=(tmp_path,), kwargs={"grace_s": 0}) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(ids(tmp_path)) == len(set(ids(tmp_path))) == 40
    assert not list(tmp_path.glob("*.jsonl"))


def test_names_of_captured_files_are_told_from_others() -> None:
    assert is_captured(Path("exchanges-1.jsonl"))
    assert is_captured(Path("exchanges-1.jsonl.gz"))
    assert is_captured(Path("exchanges-1.parquet"))
    assert not is_captured(Path("exchanges-1.parquet.partial"))
    assert not is_captured(Path("train.parquet"))


class Answering(Step):
    """Answers on the way in: no engine is needed."""

    async def before(self, call: Call) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": "kept"}, "finish_reason": "stop"}
        call.response = {"id": call.id, "object": "chat.completion", "created": 1, "usage": {}, "choices": [choice]}


@pytest.mark.parametrize("durable", [True, False])
def test_on_a_full_disk_a_durable_server_refuses_and_another_goes_on_and_both_recover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    log = opened(tmp_path, durable=durable, bounds=Bounds(group_s=0.01))
    at = ORDER.index(route.make) + 1
    made = [*ORDER[:at], lambda _: Answering(), *ORDER[at:]]
    server = Server(Fleet(deployment("m")), ServeSettings(), made, log=log)
    with monkeypatch.context() as patch:
        patch.setattr(appending, "os", Disk("write", 1, lasting=True))
        status, body = asyncio.run(asked(server))
        assert until(lambda: not log._queue)
        time.sleep(0.2)
        if durable:
            assert (status, json.loads(body)["error"]["code"]) == (503, "capture_failed")
        else:
            assert status == 200
    assert ids(tmp_path) == []
    status, body = asyncio.run(asked(server))
    assert status == 200
    log.close()
    assert ids(tmp_path) == [json.loads(body)["id"]]
