"""Two hundred kills of `train` change nothing: the same rows in every step, the same bits in every number and file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stages.test_whole_way import exchange
from tests.stages.tiny_llama import tiny_base

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]
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
    assert found["resumed"] >= 80
    assert found["finished"] >= 8  # each a run that was killed several times and then compared with the unkilled one


RECIPE = """\
name: tiny
task: {{kind: classification, labels: [bad, good, plain]}}
base_model: {base}
work_dir: work
distill: {{sources: [{{path: log.jsonl}}], duplicates: {{threshold: 1.0}}}}
train: {{learning_rate: 0.01, epochs: 6, batch_tokens: 128, window: 128, evals: 2, score_rows: 4, chat_template: base}}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_train_command_that_is_asked_to_end_says_so_by_its_code_and_goes_on_next_time(
    tmp_path: Path, number: signal.Signals
) -> None:
    base = tiny_base(tmp_path / "base")
    lines = [json.dumps(exchange(at)[0]) + "\n" for at in range(150)]
    (tmp_path / "log.jsonl").write_text("".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=base.path))
    command = [sys.executable, "-m", "potstill.cli", "train", "recipe.yaml", "--no-track"]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"POTSTILL_REDACTION_KEY": "a test's key", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        child = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said)
        deadline = time.monotonic() + 300
        while child.poll() is None and time.monotonic() < deadline:
            logs = list(tmp_path.glob("work/tiny/adapter-*/trainer_log.jsonl"))
            if logs and logs[0].read_text().count('"loss"') >= 3:
                break
            time.sleep(0.01)
        child.send_signal(number)
        assert child.wait(120) == 128 + number, (tmp_path / "said").read_text()[-3000:]
    assert len(list(tmp_path.glob("work/tiny/adapter-*/checkpoints/step-*/manifest.json"))) >= 1
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "going on from step-" in again.stderr
    (log,) = tmp_path.glob("work/tiny/adapter-*/trainer_log.jsonl")
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, len(steps) + 1))
