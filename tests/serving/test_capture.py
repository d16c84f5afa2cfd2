"""Promises of captured traffic: every acknowledged line is read exactly once, whatever is rotated, killed or full."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillation.chunks import line_chunks
from distillation.sources import files_of
from potstill.captured_files import INDEX, exchange_files
from potstill.records import Json
from potstill.serving import known_ids
from potstill.serving.appending import Appending
from potstill.serving.capture import Bounds, CaptureLog
from potstill.serving.captured import join
from potstill.serving.known_ids import KnownIds
from potstill.serving.meter import Meter
from potstill.serving.rotation import rotate, size_of


def line(identity: str, text: str = "x", **more: Any) -> Json:
    response = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    return {
        "id": identity, "time": "2026-01-05T08:00:00.000+00:00",
        "request": {"model": "m@1", "messages": [{"role": "user", "content": text}]}, "response": response,
        "latency_ms": 1.5, "cost_usd": None, "metadata": {"user": None, "tags": {}}, "feedback": [],
    } | more  # fmt: skip


def opinion(identity: str) -> Json:
    return {"id": identity, "feedback": {"kind": "thumbs", "name": "", "value": True, "time": None, "by": "a"}}


def ids(folder: Path) -> list[str]:
    return sorted(each.id for each in join(folder))


def read_by_distill(folder: Path) -> list[str]:
    """What the sources of a recipe give for the folder, under both of the globs that users write."""
    both = []
    for pattern in ("exchanges-*", "exchanges-*.jsonl"):
        found = []
        for file in files_of(str(folder / pattern)):
            for lines in line_chunks(file):
                for each in lines.split(b"\n"):
                    try:
                        found.append(str(orjson.loads(each)["id"]))
                    except (orjson.JSONDecodeError, KeyError):
                        continue  # torn by a kill; nothing else is
        both.append(sorted(found))
    assert both[0] == both[1]
    return both[0]


def opened(folder: Path, **more: Any) -> CaptureLog:
    given: dict[str, Any] = {"sample": 1.0, "durable": True, "redact": None} | more
    return CaptureLog(folder, given.pop("meter", Meter()), **given)


def until(true: Callable[[], bool], within_s: float = 30) -> bool:
    end = time.monotonic() + within_s
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


class Killed(BaseException):
    """Where a pass was ended."""


def killed_at(number: int) -> Callable[[str], None]:
    left = iter(range(number))

    def step(_: str) -> None:
        if next(left, None) is None:
            raise Killed

    return step


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 5)),
        st.tuples(st.just("close"), st.just(0)),
        st.tuples(st.just("kill"), st.integers(0, 40)),
        st.tuples(st.just("rotate"), st.sampled_from([0.0, 1e9])),
        st.tuples(st.just("killed pass"), st.integers(0, 6)),
    ),
    max_size=25,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=OPERATIONS, begun=st.booleans())
def test_any_order_of_writing_rotating_and_kills_keeps_every_acknowledged_line_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, float]], begun: bool
) -> None:
    folder = tmp_path_factory.mktemp("captured")
    file, written = Appending(folder, "exchanges"), list[str]()
    known = KnownIds(folder)
    for what, number in [("put", 2)] * begun + operations:
        if what == "put":
            for _ in range(int(number)):
                identity = f"i{len(written):04d}"
                file.append(orjson.dumps(line(identity)) + b"\n", sync=False)
                written.append(identity)
        elif what == "close":
            file.close()
        elif what == "kill":  # with part of a line under way
            if file.is_open:
                os.write(file._file, orjson.dumps(line("torn"))[: int(number)])
            file.close()
        elif what == "rotate":
            rotate(folder, grace_s=number)
        else:
            with suppress(Killed):
                rotate(folder, grace_s=0.0, step=killed_at(int(number)))
        assert ids(folder) == written
        if written:
            assert read_by_distill(folder) == written
            assert known.knows(written[-1])
            assert known.knows(written[0])
        assert not known.knows("torn")
    file.close()
    rotate(folder, grace_s=0.0)
    rotate(folder, grace_s=0.0)
    assert ids(folder) == written
    assert not list(folder.glob("*.jsonl*"))
    assert not list(folder.glob("*.partial"))


def test_a_file_that_a_living_server_appends_to_is_left_alone(tmp_path: Path) -> None:
    file = Appending(tmp_path, "exchanges")
    file.append(orjson.dumps(line("a")) + b"\n", sync=True)
    assert rotate(tmp_path).files == 0
    file.append(orjson.dumps(line("b")) + b"\n", sync=True)
    file.close()
    assert rotate(tmp_path, grace_s=0).rows == 2
    assert ids(tmp_path) == ["a", "b"]


def test_rotated_exchanges_say_what_their_lines_said(tmp_path: Path) -> None:
    lines = [
        line("a", "ünï ☕ \u2028 \"'"),
        line("b", latency_ms=None, cost_usd=0.25, metadata={"user": "u", "conversation": "c", "tags": {"x": [1, {}]}}),
        line("c", request={"messages": [{"role": "user", "content": "[1, 2]"}], "seed": 2**62, "temperature": 0.1}),
        line("d", feedback=[{"kind": "score", "name": "n", "value": 0.5, "time": None, "by": None}]),
    ]
    (tmp_path / "exchanges-1.jsonl").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in lines))
    before = list(join(tmp_path))
    assert rotate(tmp_path, grace_s=0).rows == 4
    rotate(tmp_path, grace_s=0)
    assert [each.name for each in exchange_files(tmp_path)] == ["exchanges-1.parquet"]
    assert list(join(tmp_path)) == before


@pytest.mark.parametrize("spoiled", [b'{"id": "b", "requ\n', b'{"id": "b", "other": 1}\n', b'{"id": 7}\n', b"[]\n"])
def test_a_file_with_a_line_that_no_row_can_hold_stays_as_it_is_and_is_named(tmp_path: Path, spoiled: bytes) -> None:
    path = tmp_path / "exchanges-1.jsonl"
    path.write_bytes(orjson.dumps(line("a")) + b"\n" + spoiled)
    before = path.read_bytes()
    done = rotate(tmp_path, grace_s=0)
    assert done.files == 0
    assert done.kept[0].startswith("exchanges-1.jsonl: ")
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.parquet*"))


def test_room_is_made_of_the_oldest_exchanges_without_feedback_and_never_of_feedback(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for at in range(300):
        log.put("exchanges", line(f"i{at:03d}", os.urandom(500).hex()), sync=False)
        if at % 50 == 7:
            log.put("feedback", opinion(f"i{at:03d}"), sync=True).result()
        if at % 100 == 99:
            until(lambda: not log._queue)
            log._files["exchanges"].close()
    log.close()
    judged = {f"i{at:03d}" for at in range(7, 300, 50)}
    rotate(tmp_path, grace_s=0)
    rotate(tmp_path, grace_s=0)  # the lines go
    whole = size_of(tmp_path)
    done = rotate(tmp_path, max_bytes=whole * 3 // 4, grace_s=0)
    left = set(ids(tmp_path))
    assert done.dropped == 300 - len(left) > 0
    assert done.size_bytes <= whole * 3 // 4
    assert judged <= left
    assert {f"i{at:03d}" for at in range(200, 300)} <= left, "the newest went before older ones"
    assert sum(len(each.feedback) for each in join(tmp_path)) == len(judged)
    known = KnownIds(tmp_path)
    assert known.knows("i007")
    assert not known.knows("i001")


def test_a_full_folder_takes_no_exchange_more_says_so_and_still_takes_feedback(tmp_path: Path) -> None:
    meter = Meter()
    log = opened(tmp_path, meter=meter, bounds=Bounds(max_bytes=20_000))
    log.put("exchanges", line("a", "x" * 5000), sync=True).result()
    log.put("feedback", opinion("a"), sync=True).result()
    with pytest.raises(OSError, match="holds its 20,000 bytes"):
        log.put("exchanges", line("b", "x" * 9000), sync=True).result()
    log.put("feedback", opinion("a"), sync=True).result()
    log.close()
    assert ids(tmp_path) == ["a"]
    assert [len(each.feedback) for each in join(tmp_path)] == [2]
    assert size_of(tmp_path) <= 20_000
    text = meter.text().decode()
    assert "potstill_capture_full 1.0" in text
    assert 'potstill_captured_total{outcome="full"} 1.0' in text


def test_a_server_rotates_by_size_in_another_process_and_knows_what_it_wrote(tmp_path: Path) -> None:
    log = opened(tmp_path, bounds=Bounds(rotate_bytes=10_000))
    for at in range(60):
        log.put("exchanges", line(f"i{at:02d}", "x" * 400), sync=True).result()
    assert until(lambda: len(list(tmp_path.glob("*.parquet"))) > 0)
    assert log.knows("i00")
    log.close()
    rotate(tmp_path, grace_s=0)
    assert ids(tmp_path) == [f"i{at:02d}" for at in range(60)]
    fresh = opened(tmp_path)
    assert fresh.knows("i00")
    assert fresh.knows("i59")
    assert not fresh.knows("i60")
    fresh.close()


def test_what_is_known_needs_no_more_memory_for_more_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_ids, "RECENT", 100)
    known, file = KnownIds(tmp_path), Appending(tmp_path, "exchanges")
    for at in range(1000):
        file.append(orjson.dumps(line(f"i{at}")) + b"\n", sync=False)
        known.note(f"i{at}")
    assert len(known._recent) == 100
    assert all(known.knows(f"i{at}") for at in range(0, 1000, 37))
    (tmp_path / INDEX).write_bytes(b"spoiled by a power cut" * 1000)
    assert known.knows("i0")
    with sqlite3.connect(tmp_path / INDEX) as base:
        assert base.execute("SELECT COUNT(*) FROM ids").fetchone() == (1000,)
    assert b"i77" not in (tmp_path / INDEX).read_bytes()
