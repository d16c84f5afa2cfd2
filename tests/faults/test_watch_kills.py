"""A watcher killed by SIGKILL again and again: one promotion, one rollback, no decision lost, a whole journal."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from potstill.watching.journal import Journal
from tests.unit.test_watch_loop import SETTINGS
from tests.unit.watch_place import World

ROOT = Path(__file__).resolve().parents[2]
KILLS = 12  # in each phase
pytestmark = pytest.mark.faults


def child(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.watch_child", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def killed_until_done(folder: Path, draw: random.Random, hours: float) -> int:
    """Kill the watcher at random moments of its work, then let it end; returns how often it died at work."""
    (folder / "hours").write_text(str(hours))
    died = 0
    for _ in range(KILLS):
        watcher = child(folder)
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "ready\n"
        time.sleep(draw.random() * 0.6)
        died += watcher.poll() is None
        watcher.kill()
        watcher.wait()
    assert child(folder).wait(120) == 0
    return died


@pytest.mark.parametrize("seed", [0, 1])
def test_kills_at_any_moment_lose_nothing_and_do_nothing_twice(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    (tmp_path / "watch").mkdir()
    at = World(tmp_path, SETTINGS)
    at.answer(300, "1", right=0.8)
    died = killed_until_done(tmp_path, draw, 0)
    at.answer(400, "2", right=0.95)
    at.answer(400, "1", right=0.8)
    died += killed_until_done(tmp_path, draw, 0)
    assert at.rollout.moves == ["2"]
    at.answer(300, "2", right=0.3)
    at.answer(300, "1", right=0.8)
    died += killed_until_done(tmp_path, draw, 0)
    assert at.rollout.moves == ["2", "1"]
    assert at.rollout.standing().champion == "1"
    done = [each.kind for each in Journal(tmp_path / "watch" / "journal.jsonl").entries if each.kind != "waiting"]
    for once in ("intake", "trained", "canary_began", "promote", "promoted", "rollback", "rolled_back"):
        assert done.count(once) == 1, done
    assert died > KILLS


def test_two_watchers_of_one_recipe_do_not_work_at_once(tmp_path: Path) -> None:
    (tmp_path / "watch").mkdir()
    (tmp_path / "hours").write_text("0")
    World(tmp_path, SETTINGS).answer(2000, "1", right=0.8)
    first = child(tmp_path)
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    second = child(tmp_path)
    assert second.wait(60) != 0
    assert first.wait(120) == 0
