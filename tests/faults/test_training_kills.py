"""Two hundred kills of `train` change nothing: the same rows in every step, the same bits in every number and file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults
KILLS = 200


def test_two_hundred_kills_change_no_row_no_loss_and_no_byte_of_the_adapter(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.training_children", str(tmp_path / "work"), str(KILLS), "11"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))
    assert found["differing"] == []
    landed = found["landed"]
    assert sum(landed.values()) == KILLS
    assert landed["checkpoint"] >= 20
    assert landed["evaluation"] >= 20
    assert landed["step"] >= 10
    assert found["finished"] >= 8  # each a run that was killed several times and then compared with the unkilled one
