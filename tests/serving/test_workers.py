"""Promises of several processes on one port: one engine, changes that reach all, a death that costs its own calls."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from potstill.serving import crew as crew_module
from potstill.serving.captured import join
from potstill.serving.run import RunningServer, running_server
from potstill.serving.settings import CaptureSettings, ServeSettings
from tests.serving.test_swaps import ask, gone, load, started, swaps_under_load, text, until
from tests.serving.versions import BODY, clients, settings, swapped, version

JSON = {"content-type": "application/json"}


def children(pid: int) -> list[int]:
    """All descendants."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
    parents = {int(child): int(parent) for child, parent in zip(found[::2], found[1::2], strict=True)}
    mine = {pid}
    while more := {child for child, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sorted(mine - {pid})


def pids(running: RunningServer) -> list[int]:
    assert running.crew is not None
    return running.crew.pids


def test_workers_share_one_engine_and_a_swap_reaches_all_of_them(tmp_path: Path) -> None:
    folders = [version(tmp_path / f"v{at}", f"version {at} " + "word " * 10 + f"end {at}") for at in (1, 2)]
    with running_server(folders[0], settings(tmp_path, workers=2), "m@1", tmp_path / "c") as running:
        assert len(started(folders[0])) == 1
        seen = asyncio.run(swaps_under_load(running.url, folders, 3, 8))
        assert (seen.failed, seen.mixed) == ([], [])
        assert len(seen.answers) == 2
        for _ in range(20):  # a fresh connection each: whichever worker takes it
            assert ask(running).json()["system_fingerprint"] == load(folders[1])
        assert until(lambda: running.room.fleet.draining == ())
        assert [gone(pid) for each in folders for pid in started(each)].count(False) == 1


def test_the_death_of_a_worker_costs_its_own_calls_alone_and_another_takes_its_place(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "a longer answer " * 5)
    expected = {load(folder): (folder / "model-bf16" / "answer.txt").read_text().strip()}

    async def killed(running: RunningServer) -> Any:
        end = asyncio.Event()
        asking = asyncio.create_task(clients(running.url, expected, end, 6))
        for _ in range(3):
            await asyncio.sleep(0.5)
            os.kill(pids(running)[0], signal.SIGKILL)
            await asyncio.to_thread(until, lambda: len(pids(running)) == 2)
        end.set()
        return await asking

    with running_server(folder, settings(tmp_path, workers=2), "m", tmp_path / "c") as running:
        seen = asyncio.run(killed(running))
        assert seen.mixed == []
        assert len(seen.failed) <= 3 * 6
        assert sum(seen.answers.values()) > 10
        assert until(lambda: len(pids(running)) == 2)
        assert len(started(folder)) == 1
        assert all(ask(running).status_code == 200 for _ in range(20))


def test_a_replaced_engine_is_known_to_every_worker(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "an answer")
    with running_server(folder, settings(tmp_path, workers=2), "m", tmp_path / "c") as running:
        os.kill(started(folder)[0], signal.SIGKILL)
        assert until(lambda: running.engine.restarts == 1)
        assert until(lambda: all(ask(running).status_code == 200 for _ in range(10)))


def test_new_settings_reach_all_workers_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = version(tmp_path / "v", "an answer")
    written = [settings(tmp_path, workers=2)]
    with running_server(folder, written[0], "m", tmp_path / "c", read=lambda: written[0]) as running:
        written[0] = written[0].model_copy(update={"max_body_bytes": 10})
        assert httpx.post(f"{running.url}/admin/reload", headers=JSON, timeout=60).status_code == 200
        assert {ask(running).status_code for _ in range(20)} == {413}
        monkeypatch.delenv("POTSTILL_NO_SUCH_KEY", raising=False)
        large = {"url": "http://127.0.0.1:9/v1", "model": "x", "key": "POTSTILL_NO_SUCH_KEY"}
        written[0] = ServeSettings.model_validate(written[0].model_dump() | {"large": large, "max_body_bytes": 10_000})
        refused = httpx.post(f"{running.url}/admin/reload", headers=JSON, timeout=60)
        assert refused.status_code == 409
        assert "POTSTILL_NO_SUCH_KEY is not set" in refused.json()["error"]["message"]
        assert {ask(running).status_code for _ in range(20)} == {413}


SERVE = """
import sys
from pathlib import Path
from potstill.serving.run import serve
from potstill.serving.settings import ServeSettings
serve(Path(sys.argv[1]), ServeSettings.model_validate_json(sys.argv[2]), "m", Path(sys.argv[3]))
print("ended in order")
"""


@contextmanager
def served(folder: Path, made: ServeSettings, capture: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-c", SERVE, str(folder), made.model_dump_json(), str(capture)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().strip().rpartition(" at ")[2].removesuffix("/v1")

            def ready() -> bool:
                try:
                    return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
                except httpx.HTTPError:
                    return False

            assert until(ready, 60), process.poll()
            yield process, url
        finally:
            process.kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_lets_calls_end_writes_every_line_and_leaves_no_process(tmp_path: Path, workers: int) -> None:
    folder = version(tmp_path / "v", "word " * 40, every_s=0.05)  # two seconds an answer
    made = settings(tmp_path, workers=workers, capture=CaptureSettings(redact=False))
    with served(folder, made, tmp_path / "captured") as (process, url):
        mine = children(process.pid)
        assert len(mine) == 2 + (workers if workers > 1 else 0)  # the leash and its program, the workers

        async def in_flight() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=30) as client:
                asked = [asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=BODY)) for _ in range(6)]
                await asyncio.sleep(0.8)
                process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*asked)

        replies = asyncio.run(in_flight())
        said, _ = process.communicate(timeout=30)
        assert [each.status_code for each in replies] == [200] * 6
        assert (process.returncode, said) == (0, "ended in order\n")
        assert {each.id for each in join(tmp_path / "captured")} == {each.json()["id"] for each in replies}
        assert until(lambda: all(gone(pid) for pid in mine), 5)


def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "an answer")
    with served(folder, settings(tmp_path, workers=2), tmp_path / "c") as (process, url):
        assert httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=30).status_code == 200
        mine = children(process.pid)
        assert len(mine) == 4
        process.kill()
        assert until(lambda: all(gone(pid) for pid in mine), 15)


def test_a_hang_up_signal_reads_the_recipe_again(tmp_path: Path) -> None:
    """By the command, as it is used: the recipe is changed on the disk and the process told."""
    folder = version(tmp_path / "v", "an answer")
    recipe = tmp_path / "recipe.yaml"
    engine = json.dumps(settings(tmp_path).engine.model_dump(exclude_none=True))

    def write(most: int) -> None:
        recipe.write_text(
            "name: m\ntask: {kind: generation}\nbase_model: none\n"
            "distill: {sources: [{format: openai_pairs, path: x}]}\n"
            f"serve: {{port: 0, capture: null, max_body_bytes: {most}, engine: {engine}}}\n"
        )

    write(10_000)
    command = [sys.executable, "-m", "potstill.cli", "serve", str(folder), "--recipe", str(recipe)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=absolute()) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().strip().rpartition(" at ")[2]
            assert url.startswith("http"), process.stderr.read()
            time.sleep(0.5)
            assert httpx.post(f"{url}/chat/completions", json=BODY, timeout=30).status_code == 200
            write(10)
            process.send_signal(signal.SIGHUP)
            assert "settings read again" in process.stderr.readline()
            assert httpx.post(f"{url}/chat/completions", json=BODY, timeout=30).status_code == 413
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def absolute() -> dict[str, str]:
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(each).resolve()) for each in paths if each)}


def test_connections_that_wait_at_a_dead_workers_door_are_answered_by_another(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "an answer")
    with running_server(folder, settings(tmp_path, workers=2), "m", tmp_path / "c") as running:
        assert running.crew is not None
        running.crew.START = 0
        for _ in range(3):
            os.kill(pids(running)[0], signal.SIGKILL)
            began = time.monotonic()
            assert [ask(running).status_code for _ in range(12)] == [200] * 12
            assert time.monotonic() - began < 20
            assert until(lambda: len(pids(running)) == 2)
        victim = pids(running)[0]
        os.kill(victim, signal.SIGTERM)  # told to end by somebody: it drains, another takes its place
        assert [ask(running).status_code for _ in range(12)] == [200] * 12
        assert until(lambda: gone(victim) and len(pids(running)) == 2)


def test_a_worker_that_stands_still_holds_no_swap_up_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "STUCK_S", 3.0)
    monkeypatch.setattr(crew_module, "ASK_EVERY_S", 0.5)
    first, second = version(tmp_path / "a", "from a"), version(tmp_path / "b", "from b")
    with running_server(first, settings(tmp_path, workers=2), "m", tmp_path / "c") as running:
        stuck = pids(running)[0]
        os.kill(stuck, signal.SIGSTOP)
        assert asyncio.run(swapped(running.url, artifact=str(second))).status_code == 200
        assert until(lambda: gone(stuck) and len(pids(running)) == 2, 60)
        assert until(lambda: {text(ask(running)) for _ in range(10)} == {"from b"}, 30)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_address_is_said_when_it_can_be_asked_and_not_before(tmp_path: Path, workers: int) -> None:
    folder = version(tmp_path / "v", "an answer")
    script = (
        "import sys; from pathlib import Path; from potstill.serving.run import serve; "
        "from tests.serving.versions import settings; here = Path(sys.argv[1]); "
        f"serve(here / 'v', settings(here, workers={workers}), 'm@1', here / 'c')"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr is not None
            url = next(line.split(" at ")[1].strip() for line in child.stderr if " at http" in line)
            reply = httpx.post(f"{url}/chat/completions", json=BODY, timeout=30)  # once: nothing is tried again
            assert (reply.status_code, text(reply)) == (200, "an answer")
            assert reply.json()["system_fingerprint"] == load(folder)
        finally:
            child.terminate()
