"""`potstill forget --yes` ended by SIGKILL at any moment: the same command goes on, and nothing is half forgotten."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from potstill.manifest import read_manifest
from potstill.serving.captured import join
from tests.unit.forget_place import Place, add_descendants, make_place, secret, users_log
from tests.unit.mail_log import exchange, place_of

USER = "walter-u7"
WORDS = (USER, "x00007", "x00017", "x00037", "x00047", "x00090", "zanzibar0007", "zanzibar0047", "zanzibar0090")
KILLS = 8


def place_of_user(root: Path, patch: pytest.MonkeyPatch) -> Place:
    captured = exchange(90, text=secret(90), metadata={"user": USER, "conversation": "k90"})
    made = make_place(root, patch, users_log(), [captured, *(exchange(at) for at in range(91, 99))])
    row = next(each for each in ("x00007", "x00017", "x00037", "x00047") if place_of(made.old).get(each) == "train")
    add_descendants(made, row, secret(int(row[1:])))
    return made


def start(made: Place) -> subprocess.Popen[bytes]:
    words = ["forget", "--user", USER, "--work-dir", str(made.work), "--yes"]
    return subprocess.Popen([sys.executable, "-m", "potstill.cli", *words], stdout=subprocess.DEVNULL)


@pytest.mark.faults
def test_killed_at_any_moment_the_same_command_ends_what_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = place_of_user(tmp_path / "whole", monkeypatch)
    began = time.monotonic()
    assert start(whole).wait() == 0
    lasts = time.monotonic() - began
    for at in range(KILLS):
        made = place_of_user(tmp_path / str(at), monkeypatch)
        child = start(made)
        time.sleep(lasts * (0.5 + 0.5 * at / KILLS))  # the first half is Python starting
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert start(made).wait() == 0
        assert made.holding(*WORDS) == []
        assert [each.id for each in join(made.captured)] == [f"x000{number}" for number in range(91, 99)]
        records = [json.loads(each.read_text()) for each in (made.work / "forgotten").glob("*.json")]
        assert [each["state"] for each in records] == ["done"]
        for folder in made.work.glob("mail/*/manifest.json"):
            read_manifest(folder.parent)
