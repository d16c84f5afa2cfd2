"""A hundred kills of `distill` change nothing: the same dataset to the byte, nothing of a killed run left at work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.mail_log import correction, exchange, said, write_log

pytestmark = pytest.mark.faults
MARK = "POTSTILL_KILL_TEST"


def log_of(path: Path, rows: int) -> Path:
    """Corrections, near-duplicates, personal data and damaged lines, so that every step has something to do."""
    lines = []
    for at in range(rows):
        text = said(at) + (f" write to user{at}@mail.example" if at % 11 == 0 else "")
        text = said(at - 1) + " please" if at % 7 == 3 else text
        given = correction(["card", "cash", "loan"][(at + 1) % 3]) if at % 9 == 0 else []
        lines.append(exchange(at, text=text, feedback=given))
    return write_log(path, [*lines, "{damaged", "[]"])


def distilled(log: Path, work: Path, kills: int) -> dict[str, object]:
    environment = os.environ | {"POTSTILL_REDACTION_KEY": "a test's key", MARK: str(work), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults.distill_children", str(log), str(work), str(kills), "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def still_at_work(work: Path) -> list[int]:
    """Processes that carry this run's mark."""
    wanted = f"{MARK}={work}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_hundred_kills_give_the_same_dataset_and_leave_no_process_behind(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log.jsonl", 1500)
    undisturbed = distilled(log, tmp_path / "undisturbed", 0)
    killed = distilled(log, tmp_path / "killed", 100)
    print(json.dumps({"undisturbed": undisturbed, "killed": killed}))
    assert killed["digest"] == undisturbed["digest"]
    assert "failed" not in killed["ended"]  # type: ignore[operator]
    deadline = time.monotonic() + 10
    while (left := still_at_work(tmp_path / "killed")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    assert list((tmp_path / "killed" / "out").rglob(".scratch-*")) == []
