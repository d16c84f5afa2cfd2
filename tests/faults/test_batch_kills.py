"""Promise: a batch survives `kill -9`, goes on behind what is written, and answers each line once where it can.

python -m pytest -m faults tests/faults/test_batch_kills.py -s      # POTSTILL_KILLS=20
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import openai
import pytest

from tests.serving.mock_door import ROOT
from tests.serving.test_answers import ScriptedEngine
from tests.serving.test_batches import begun, ended, line, lines_of, packed

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("POTSTILL_KILLS", "20"))
LINES = 8_000
SLOTS = 4


def started(folder: Path, engine: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "tests.faults.batch_child", str(folder), engine]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert child.stdout is not None
    return child, child.stdout.readline().strip()


def test_a_batch_goes_on_after_every_kill_and_answers_each_line_once(tmp_path: Path) -> None:
    engine = ScriptedEngine(["x"])
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    draw = random.Random(5)
    child, url = started(tmp_path, engine.url)
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as found:
            batch = begun(found, packed([line(f"k{at}") for at in range(LINES)]))
        at_kill: list[int] = []
        for _ in range(KILLS):
            time.sleep(0.15 + draw.random() * 0.35)
            child.kill()
            child.wait()
            written = list((tmp_path / "state" / "batches").glob("*-output.jsonl"))
            at_kill.append(sum(each.read_bytes().count(b"\n") for each in written))
            child, url = started(tmp_path, engine.url)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as found:
            done = ended(found, batch, 120)
            answers = lines_of(found, done.output_file_id)
    finally:
        child.kill()
        child.wait()
        engine.shutdown()
        engine.server_close()
    asked = Counter(each["messages"][0]["content"] for each in engine.got)
    twice = sum(times - 1 for times in asked.values())
    figures = {
        "kills": KILLS, "lines": LINES, "status": done.status, "answered": len(answers), "asked twice": twice,
        "written at each kill": at_kill,
    }  # fmt: skip
    print(json.dumps(figures))
    assert done.status == "completed"
    assert Counter(each["custom_id"] for each in answers) == Counter(f"k{at}" for at in range(LINES))
    assert twice <= KILLS * SLOTS  # what was with the engine, or answered and not yet written
    assert any(0 < each < LINES for each in at_kill)
    assert done.request_counts.completed == LINES
