"""200 hot swaps and rollbacks under load, alone and with workers; workers killed under load."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from potstill.contract import Contract
from potstill.manifest import write_manifest
from potstill.serving.run import RunningServer, running_server
from potstill.serving.settings import ServeSettings
from tests.serving.conftest import artifact
from tests.serving.test_swaps import ask, gone, load, started, swaps_under_load, text, until
from tests.serving.versions import Seen, clients, settings, swapped, version

__all__ = ["artifact"]  # a fixture
pytestmark = pytest.mark.faults
SWAPS = int(os.environ.get("POTSTILL_SWAPS", "200"))
REAL_SWAPS = int(os.environ.get("POTSTILL_REAL_SWAPS", "30"))
KILLS = int(os.environ.get("POTSTILL_KILLS", "20"))
CLIENTS = 6


def said(what: str, seen: Seen) -> None:
    print(f"{what}: {sum(seen.answers.values())} answers, {seen.streams} of them streams, by version "
          f"{sorted(seen.answers.values())}, {len(seen.failed)} failed, {len(seen.mixed)} mixed")  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
def test_hot_swaps_and_rollbacks_under_load_fail_and_mix_nothing(tmp_path: Path, workers: int) -> None:
    folders = [version(tmp_path / f"v{at}", f"version {at} " + "word " * 20 + f"end {at}") for at in (1, 2)]
    with running_server(folders[0], settings(tmp_path, workers=workers), "m@1", tmp_path / "c") as running:
        seen = asyncio.run(swaps_under_load(running.url, folders, SWAPS, CLIENTS))
        said(f"{SWAPS} swaps, {workers} workers", seen)
        assert (seen.failed, seen.mixed) == ([], [])
        assert len(seen.answers) == 2
        assert sum(len(started(each)) for each in folders) == SWAPS + 1
        assert until(lambda: running.room.fleet.draining == ())
        assert [gone(pid) for each in folders for pid in started(each)].count(False) == 1


def test_hot_swaps_of_the_real_engine(artifact: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    os.link(artifact / "model-q4_1.gguf", other / "model-q4_1.gguf")
    replace(Contract.read(artifact), task={"kind": "classification", "labels": ["yes", "no"]}).write(other)
    facts = {"formats": {"gguf-q4_1": {"file": "model-q4_1.gguf"}}}
    write_manifest(other, "artifact", settings_passed={}, settings_used={}, inputs=[], facts=facts)

    async def loaded(running: RunningServer) -> Seen:
        expected: dict[str, str] = {}
        for folder, following in ((artifact, other), (other, artifact)):
            expected[load(folder)] = text(await asyncio.to_thread(ask, running))
            assert (await swapped(running.url, artifact=str(following))).status_code == 200
        end = asyncio.Event()
        asking = asyncio.create_task(clients(running.url, expected, end, CLIENTS))
        for at in range(REAL_SWAPS):
            done = await swapped(running.url, artifact=str((other, artifact)[at % 2]))
            assert done.status_code == 200, done.text
        end.set()
        return await asking

    with running_server(artifact, ServeSettings(port=0, slots=2, threads=1, capture=None), "m", tmp_path) as running:
        seen = asyncio.run(loaded(running))
    said(f"{REAL_SWAPS} swaps of the real engine", seen)
    assert (seen.failed, seen.mixed) == ([], [])
    assert len(seen.answers) == 2


def test_workers_killed_under_load_lose_their_own_calls_alone(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "a longer answer " * 5)
    expected = {load(folder): (folder / "model-bf16" / "answer.txt").read_text().strip()}

    async def killed(running: RunningServer) -> tuple[Seen, list[int]]:
        assert running.crew is not None
        end, losses = asyncio.Event(), []
        asking = asyncio.create_task(clients(running.url, expected, end, CLIENTS))
        for at in range(KILLS):
            await asyncio.sleep(0.3)
            victim = running.crew.pids[at % len(running.crew.pids)]
            os.kill(victim, signal.SIGKILL)
            await asyncio.to_thread(until, lambda dead=victim: dead not in running.crew.pids)  # type: ignore[union-attr]
            await asyncio.to_thread(until, lambda: len(running.crew.pids) == 2)  # type: ignore[union-attr]
            losses.append(victim)
        end.set()
        return await asking, losses

    with running_server(folder, settings(tmp_path, workers=2), "m", tmp_path / "c") as running:
        seen, losses = asyncio.run(killed(running))
        said(f"{len(losses)} workers killed", seen)
        assert len(losses) == KILLS
        assert seen.mixed == []
        assert len(seen.failed) <= KILLS * CLIENTS  # a client has one call at a time
        assert len(started(folder)) == 1
        assert until(lambda: len(running.crew.pids) == 2)  # type: ignore[union-attr]
        assert all(ask(running).status_code == 200 for _ in range(20))
