"""A benchmark's record: what is judged, what is written, what the exit code says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import record as module
from benchmarks.record import Figure, Record, arguments, ratio


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records go to a folder of the test's own."""
    for name, value in (("ROOT", tmp_path), ("WORK", tmp_path / "work"), ("KEPT", tmp_path / "kept")):
        monkeypatch.setattr(module, name, value)
    return tmp_path


def test_a_figure_is_the_median_of_its_runs_with_lowest_and_highest() -> None:
    assert Figure.of([5.0, 1.0, 2.0], "s") == Figure(2.0, "s", 1.0, 5.0, 3)
    assert Record("x").figure("one", 7, "rows").runs == 1


@pytest.mark.parametrize(
    ("value", "bound", "passed"),
    [
        (20_000, {"at_least": 20_000}, True),
        (19_999, {"at_least": 20_000}, False),
        (2.0, {"at_most": 2.0}, True),
        (2.1, {"at_most": 2.0}, False),
        (None, {"at_least": 0}, False),
        (None, {"at_most": 0}, False),
    ],
)
def test_a_check_holds_its_bound_and_what_was_not_measured_has_not_passed(
    value: float | None, bound: dict[str, float], passed: bool
) -> None:
    record = Record("x")
    assert record.check("c", value, **bound) is passed
    assert record.exit_code == (0 if passed else 3)


def test_a_check_needs_exactly_one_bound() -> None:
    for bounds in ({}, {"at_least": 1.0, "at_most": 2.0}):
        with pytest.raises(ValueError, match="at_least or at_most"):
            Record("x").check("c", 1, **bounds)


def test_one_check_that_falls_short_decides_the_exit_code_and_every_figure_is_still_written(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record("demo", packages=("pytest", "no-such-distribution"))
    fast = record.figure("ours", [30.0, 10.0, 20.0], "rows/s")
    record.check("fast", fast, at_least=15, unit="rows/s")
    record.check("small", 9.0, at_most=2)
    record.note("a note")
    assert record.finish() == 3
    printed = capsys.readouterr().out
    assert "FELL SHORT" in printed
    assert "a note" in printed
    written = json.loads((folders / "work" / "results" / "demo.json").read_text())
    assert written["figures"]["ours"] == {"value": 20.0, "unit": "rows/s", "low": 10.0, "high": 30.0, "runs": 3}
    assert written["checks"] == [
        {"name": "fast", "figure": 20.0, "goal": ">= 15 rows/s", "passed": True},
        {"name": "small", "figure": 9.0, "goal": "<= 2", "passed": False},
    ]
    assert {"name", "command", "commit", "machine", "versions", "figures", "checks"} <= set(written)
    assert set(written["versions"]) == {"python", "pytest"}
    assert written["machine"]["cores"] >= 1


def test_with_json_nothing_but_the_json_is_printed(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record("demo", quick=True)
    record.check("fine", 1, at_least=1)
    assert record.finish(as_json=True, keep=True) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["quick"] is True
    assert (folders / "kept" / "demo-quick.json").read_text() == printed


def test_a_ratio_is_of_medians_and_of_nothing_is_none() -> None:
    assert ratio([1.0, 9.0, 4.0], [2.0]) == 2.0
    assert ratio([1.0], []) is None


def test_every_benchmark_takes_the_same_three_options() -> None:
    args = arguments("Title\n\nmore").parse_args(["--quick", "--json", "--keep"])
    assert (args.quick, args.json, args.keep) == (True, True, True)


def test_the_shared_record_starts_without_any_installed_package() -> None:
    """Peers run in environments of their own, and may import it there."""
    code = "import sys; sys.path.insert(0, '.'); import benchmarks.record; print('numpy' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "False"


def test_a_record_names_no_folder_of_the_machine_that_it_was_made_on(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["demo", "--keep", "--data", "/elsewhere/data/log.jsonl.gz", "--out", f"{folders}/work/x", "--rate=2"]
    monkeypatch.setattr(sys, "argv", words)
    record = Record("demo")
    record.note(f"{folders}/work/x: refused")
    record.finish(keep=True)
    written = (folders / "kept" / "demo.json").read_text()
    assert json.loads(written)["command"] == (
        "python -m benchmarks.demo --keep --data .../log.jsonl.gz --out work/x --rate=2"
    )
    assert json.loads(written)["notes"] == ["work/x: refused"]
