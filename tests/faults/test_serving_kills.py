"""A capturing server ended by SIGKILL under load, again and again: what it acknowledged is there, once."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from potstill import cli
from potstill.pipeline import newest
from potstill.serving.captured import join
from potstill.serving.rotation import rotate
from tests.faults import serving_child

pytestmark = pytest.mark.faults
KILLS = 50
CLIENTS = 8
LATE_S = 2.0  # what a group may wait on a busy machine (0.1 s are promised, and the disk's own time)
RECIPE = """\
name: kills
task: {{kind: classification, labels: [label, other]}}
base_model: {base}
work_dir: work
distill:
  sources: [{{path: {folder}/exchanges-*.jsonl, format: openai_pairs}}]
  split: {{test: 0.2, validation: 0.1}}
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    words = [sys.executable, "-m", "benchmarks.gateway.mock_engine", "--tokens", "1"]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    yield child.stdout.readline().strip()
    child.kill()
    child.wait()


class Acknowledged:
    """Ids of answers and of feedback that clients were told of, with when."""

    def __init__(self) -> None:
        self.answers: dict[str, float] = {}
        self.feedback: Counter[str] = Counter()

    async def client(self, url: str, draw: random.Random, number: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            while True:
                text = f"card {draw.randrange(10**9)} of anna{number}@example.com is lost"
                body = {"model": "m", "messages": [{"role": "user", "content": text}]}
                answer = await http.post("/v1/chat/completions", json=body)
                if answer.status_code != 200:
                    continue
                identity = answer.json()["id"]
                self.answers[identity] = time.monotonic()
                if draw.random() < 0.3:
                    about = {"id": identity, "kind": "correction", "value": "label"}
                    told = await http.post("/v1/feedback", json=about)
                    if told.status_code == 200:
                        self.feedback[identity] += 1


async def under_load(url: str, acknowledged: Acknowledged, seconds: float, child: subprocess.Popen[str]) -> None:
    clients = [asyncio.ensure_future(acknowledged.client(url, random.Random(), at)) for at in range(CLIENTS)]
    before, began = len(acknowledged.answers), time.monotonic()
    while len(acknowledged.answers) == before and time.monotonic() < began + 60:
        await asyncio.sleep(0.02)
    await asyncio.sleep(seconds)
    child.kill()
    await asyncio.sleep(0)
    child.wait()
    for each in clients:
        with suppress(httpx.HTTPError):
            await asyncio.wait_for(each, 5)


def kill_once(engine: str, folder: Path, how: str, acknowledged: Acknowledged, seconds: float) -> float:
    words = [sys.executable, serving_child.__file__, engine, str(folder), how]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    url = child.stdout.readline().strip()
    asyncio.run(under_load(url, acknowledged, seconds, child))
    return time.monotonic()


def test_killed_fifty_times_under_load_every_feedback_and_durable_capture_is_there_and_distill_reads_them(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, acknowledged = tmp_path / "work" / "captured" / "kills", Acknowledged()
    folder.mkdir(parents=True)
    draw = random.Random(7)
    for _ in range(KILLS):
        kill_once(engine, folder, "durable", acknowledged, draw.uniform(0.2, 0.8))
    found = list(join(folder))
    counted = Counter(each.id for each in found)
    print(
        f"{KILLS} kills: {len(acknowledged.answers)} answers and {sum(acknowledged.feedback.values())} feedback "
        f"acknowledged, {len(found)} exchanges found, {len(list(folder.glob('*.parquet')))} Parquet files, "
        f"{len(list(folder.glob('exchanges-*.jsonl')))} files of lines"
    )
    assert len(acknowledged.answers) > KILLS
    assert set(acknowledged.answers) <= set(counted)
    assert set(counted.values()) == {1}
    opinions = {each.id: len(each.feedback) for each in found}
    assert all(opinions[identity] >= number for identity, number in acknowledged.feedback.items())
    rotate(folder, grace_s=0)
    rotate(folder, grace_s=0)
    assert Counter(each.id for each in join(folder)) == counted
    assert "@example.com" not in "".join(json.dumps(each.to_json()) for each in join(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tmp_path / "base", folder=folder))
    assert cli.main(["distill", str(tmp_path / "recipe.yaml"), "--no-track", "--json"]) == 0
    dataset = newest(tmp_path / "work" / "kills", "dataset")
    facts = json.loads((dataset / "manifest.json").read_text())["facts"]
    print("distill:", facts["steps"])
    assert facts["steps"]["exchanges"] == len(found)


def test_grouped_capture_loses_no_feedback_and_no_answer_but_those_of_the_last_moment(
    engine: str, tmp_path: Path
) -> None:
    acknowledged, lost, oldest = Acknowledged(), 0, 0.0
    for _ in range(10):
        before = set(acknowledged.answers)
        killed = kill_once(engine, tmp_path, "grouped", acknowledged, 2.5)
        there = {each.id for each in join(tmp_path)}
        missing = {each for each in acknowledged.answers if each not in there and each not in before}
        lost += len(missing)
        oldest = max([oldest, *(killed - acknowledged.answers[each] for each in missing)])
        assert not missing & set(acknowledged.feedback)
    print(f"10 kills: {len(acknowledged.answers)} answers, {lost} lost, the oldest {oldest:.2f} s before the kill")
    assert oldest < LATE_S
    assert lost < len(acknowledged.answers) / 2
    found = list(join(tmp_path))
    assert len({each.id for each in found}) == len(found)
    opinions = {each.id: len(each.feedback) for each in found}
    assert all(opinions[identity] >= number for identity, number in acknowledged.feedback.items())


def test_the_process_that_rotates_killed_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    response = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "label"}, "finish_reason": "stop"}]
    }
    expected = []
    for file in range(40):
        lines = []
        for at in range(250):
            expected.append(f"i{file:02d}-{at:03d}")
            request = {"messages": [{"role": "user", "content": f"{file} {at} " + "x" * 400}]}
            lines.append(json.dumps({"id": expected[-1], "request": request, "response": response}) + "\n")
        (tmp_path / f"exchanges-{file:02d}.jsonl").write_text("".join(lines))
    draw, made, words = random.Random(5), set(), [sys.executable, "-m", "potstill.serving.rotation"]
    shutil.copytree(tmp_path, tmp_path / "undisturbed")
    began = time.monotonic()
    assert subprocess.run([*words, tmp_path / "undisturbed"], stdout=subprocess.DEVNULL).returncode == 0
    lasts = time.monotonic() - began
    for _ in range(20):
        child = subprocess.Popen([*words, tmp_path], stdout=subprocess.DEVNULL)
        time.sleep(lasts * draw.uniform(0.3, 0.8))
        child.kill()
        child.wait()
        made.add(len(list(tmp_path.glob("*.parquet"))))
        assert sorted(each.id for each in join(tmp_path)) == expected
    print(f"20 kills of the rotating process, after {sorted(made)} files")
    assert len(made) > 1, "no kill came between two files"
    rotate(tmp_path, grace_s=0)
    rotate(tmp_path, grace_s=0)
    assert not list(tmp_path.glob("*.jsonl"))
    assert sorted(each.id for each in join(tmp_path)) == expected
