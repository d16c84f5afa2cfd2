"""Relabelling killed at random moments: the result is that of an undisturbed run, and nothing is paid twice.

The teacher is a process of its own that bills what it generates, whether or not its client lives to read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.local_teacher import PRICE

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]
CONCURRENCY = 4
QUICK = {"concurrency": 16}
Json = dict[str, Any]


def python(*words: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, **pipes)


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    started = python(*words)
    try:
        yield started
    finally:
        started.communicate(timeout=30)  # closing its input ends it


def lines_of(bill: Path) -> list[Json]:
    return [json.loads(line) for line in bill.read_text().splitlines()] if bill.exists() else []


@contextmanager
def local_teacher(bill: Path, *more: str) -> Iterator[str]:
    with process("-m", "tests.local_teacher", "--bill", str(bill), *more) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()


def settings_for(url: str, honoured: bool, **more: Any) -> Json:
    teacher = {"base_url": url, "model": "t", "price": PRICE, "max_tokens": 16, "honours_idempotency_keys": honoured}
    speed = {"concurrency": CONCURRENCY, "batch_poll_s": 0.03, "attempts": 8}
    return {"teacher": teacher, "budget_usd": 50.0, "samples": 3, "decide": "judge"} | speed | more


class Starter:
    """Starts relabelling processes and kills them."""

    def __init__(self, zygote: subprocess.Popen[str]) -> None:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        self._in, self._out = zygote.stdin, zygote.stdout

    def run(self, job: Json, kill_after_s: float | None = None) -> int:
        self._in.write(json.dumps(job) + "\n")
        self._in.flush()
        child = int(self._out.readline())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with suppress(ProcessLookupError):  # done before
                os.kill(child, signal.SIGKILL)
        return int(self._out.readline())


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    with process("-m", "tests.faults.relabel_child") as zygote:
        yield Starter(zygote)


def digest(out: Json) -> str:
    """Of the results and all facts but those of the single run."""
    kept = {"results": out["results"], "facts": {k: v for k, v in out["facts"].items() if k != "run"}}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def undisturbed(starter: Starter, folder: Path, rows: int, *more: str, **changes: Any) -> tuple[Json, Counter[str]]:
    """The outcome of a run that nobody kills, against a teacher of its own, and its bill by key."""
    folder.mkdir()
    with local_teacher(folder / "bill", *more) as url:
        quick = settings_for(url, True, **changes) | QUICK
        job = {"settings": quick, "rows": rows, "cache": str(folder / "cache"), "out": str(folder / "out")}
        assert starter.run(job) == 0
    return json.loads((folder / "out").read_text()), Counter(each["key"] for each in lines_of(folder / "bill"))


def kill_until_done(starter: Starter, job: Json, kills: int, progress: Callable[[], float], rng: random.Random) -> int:
    """Kill so many times, however quick the work is: more at once when it is ahead. Returns the kills that struck."""
    struck = 0
    for nth in range(20 * kills):
        if struck == kills:
            break
        ahead = progress() > 0.9 * struck / kills
        longest_s = 0.15 if ahead else 0.8
        struck += starter.run(job, rng.uniform(0, longest_s)) == -signal.SIGKILL
        assert not Path(job["out"]).exists(), f"done after {struck} of {kills} kills ({nth + 1} starts): too fast"
    assert starter.run(job | {"settings": job["settings"] | QUICK}) == 0
    return struck


def report(record: Callable[[str, object], None], **figures: object) -> None:
    for name, figure in figures.items():
        record(name, figure)
    print("relabel kills:", json.dumps(figures))


@pytest.mark.parametrize("honoured", [True, False], ids=["keys honoured", "keys ignored"])
def test_a_hundred_kills_change_no_answer_and_pay_for_nothing_twice(
    honoured: bool, starter: Starter, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    kills, rows, rng, start = 100, 200, random.Random(7), time.monotonic()
    # Faults that pass, but where keys are ignored: there each reset is one more bill, which no client can avoid.
    faults = ["--faults"] if honoured else []
    expected, keys = undisturbed(starter, tmp_path / "calm", rows, *faults)
    bill, out = tmp_path / "bill", tmp_path / "out"
    with local_teacher(bill, "--delay", "0.04", *faults, *([] if honoured else ["--ignore-keys"])) as url:
        job = {
            "settings": settings_for(url, honoured),
            "rows": rows,
            "cache": str(tmp_path / "cache"),
            "out": str(out),
        }
        struck = kill_until_done(starter, job, kills, lambda: len(lines_of(bill)) / keys.total(), rng)
    found, billed = json.loads(out.read_text()), Counter(each["key"] for each in lines_of(bill))
    usd, run = sum(each["usd"] for each in lines_of(bill)), found["facts"]["run"]
    extra = billed.total() - len(billed)
    report(
        record_property,
        kills=struck,
        requests=len(billed),
        billed_twice=extra,
        left_unknown_by_kills=run["left_unknown_by_kills"],
        bill_usd=round(usd, 6),
        ledger_usd=run["ledger_counted_usd"],
        seconds=round(time.monotonic() - start, 1),
    )
    assert struck == kills
    assert run["left_unknown_by_kills"] >= kills / 4, "the kills struck where nothing was in flight"
    assert digest(found) == digest(expected)
    assert set(billed) == set(keys)
    if honoured:
        assert extra == 0
        assert run["ledger_doubtful_usd"] == 0
    else:
        assert extra <= kills * CONCURRENCY
        assert extra <= run["left_unknown_by_kills"]
    assert usd <= run["ledger_counted_usd"] + 1e-9


def test_kills_in_batch_mode_submit_nothing_twice(
    starter: Starter, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    kills, rows, rng = 30, 60, random.Random(11)
    expected, keys = undisturbed(starter, tmp_path / "calm", rows, batch=True)
    bill, out = tmp_path / "bill", tmp_path / "out"
    with local_teacher(bill, "--batch-delay", "5") as url:
        settings = settings_for(url, True, batch=True)
        job = {"settings": settings, "rows": rows, "cache": str(tmp_path / "cache"), "out": str(out)}
        struck = 0
        for _ in range(kills):
            struck += starter.run(job, rng.uniform(0, 0.25)) == -signal.SIGKILL
        assert starter.run(job) == 0
    found, billed = json.loads(out.read_text()), Counter(each["key"] for each in lines_of(bill))
    report(record_property, kills=struck, requests=len(billed), billed_twice=billed.total() - len(billed))
    assert struck >= kills // 2
    assert digest(found) == digest(expected)
    assert billed == keys
    assert set(billed.values()) == {1}


def test_kills_do_not_pass_the_budget_even_where_keys_are_ignored(
    starter: Starter, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rng, bill, out, budget = random.Random(13), tmp_path / "bill", tmp_path / "out", 0.05
    with local_teacher(bill, "--delay", "0.05", "--ignore-keys") as url:
        settings = settings_for(url, False, budget_usd=budget)
        job = {"settings": settings, "rows": 400, "cache": str(tmp_path / "cache"), "out": str(out)}
        struck = sum(starter.run(job, rng.uniform(0, 0.6)) == -signal.SIGKILL for _ in range(25))
        assert starter.run(job) == 0
    facts, usd = json.loads(out.read_text())["facts"], sum(each["usd"] for each in lines_of(bill))
    report(record_property, kills=struck, budget_usd=budget, bill_usd=usd, run=facts["run"])
    assert struck >= 10
    assert facts["run"]["left_unknown_by_kills"] > 0
    assert facts["refused_by_budget"] > 0
    assert facts["run"]["ledger_counted_usd"] <= budget
    assert usd <= budget
