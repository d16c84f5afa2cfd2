"""What a command costs is told of it and of all processes it starts."""

from __future__ import annotations

import sys

from benchmarks.measure import measured

HOLD = "import sys, time; held = bytearray(int(sys.argv[1])); time.sleep(3.0)"


def test_memory_is_of_the_whole_process_tree() -> None:
    alone = measured([sys.executable, "-c", HOLD, "100000000"])
    both = measured(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; [p.wait() for p in [subprocess.Popen([sys.executable, '-c', {HOLD!r}, "
            "'100000000']) for _ in range(2)]]",
        ]
    )
    assert 100e6 < alone.peak_bytes < 150e6, alone
    assert 200e6 < both.peak_bytes < 300e6, both
    assert 100e6 < both.largest_rss_bytes < 150e6


def test_processor_time_is_told_of_workers_that_nobody_waits_for() -> None:
    burn = "import time; [None for _ in iter(lambda: time.process_time() < 0.8, False)]; time.sleep(0.5)"
    orphan = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {burn!r}]); time.sleep(4)"
    assert measured([sys.executable, "-c", orphan]).cpu_s >= 0.7


def test_output_and_exit_code_come_back() -> None:
    cost = measured([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)"])
    assert (cost.code, cost.stdout, cost.stderr) == (5, "out\n", "err\n")


def test_what_runs_past_its_time_is_ended() -> None:
    cost = measured([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.5)
    assert cost.code == -9
    assert cost.wall_s < 20
