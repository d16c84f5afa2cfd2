"""Several seeds: the interval is over rows and seeds, and what does not belong together is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.manifest import write_manifest
from potstill.resampling import linearised
from potstill.seeds import combine, seeds_of

TASK = {"kind": "classification", "labels": ["a", "b"]}


def sums_of(gains: np.ndarray) -> np.ndarray:
    ones = np.ones(len(gains))
    return np.stack([(gains > 0) * 1.0, ones, (gains < 0) * 1.0, ones], axis=1)


def test_seeds_that_agree_say_no_more_than_one() -> None:
    gains = np.random.default_rng(1).choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=400)
    table = sums_of(gains)
    found = combine([table] * 3, np.ones(400))
    value, error = linearised(table)
    assert (found.value, found.between_seeds, found.error_seeds) == (pytest.approx(value), 0.0, 0.0)
    assert found.error_rows == pytest.approx(error)


def test_seeds_that_differ_widen_the_interval() -> None:
    generator = np.random.default_rng(2)

    def table(up: float) -> np.ndarray:
        return sums_of(generator.choice([-1, 0, 1], p=[0.2 - up, 0.6, 0.2 + up], size=2000))

    near, far = (combine([table(up) for up in ups], np.ones(2000)) for ups in ((0, 0, 0), (-0.1, 0, 0.1)))
    assert far.between_seeds > 5 * near.between_seeds
    assert far.high - far.low > 3 * (near.high - near.low)
    assert far.freedom < 5


def test_interval_covers_the_recipes_true_difference() -> None:
    """Rows and seeds are both drawn anew; the truth is the mean over both."""
    generator, covered, trials, rows, seeds = np.random.default_rng(3), 0, 400, 300, 4
    for _ in range(trials):
        level = generator.uniform(0.4, 0.9, rows)
        teacher = generator.random(rows) < 0.65
        tables = []
        for _ in range(seeds):
            student = generator.random(rows) < np.clip(level + generator.normal(0, 0.04), 0, 1)
            tables.append(sums_of(student.astype(int) - teacher.astype(int)))
        found = combine(tables, np.ones(rows))
        covered += found.low <= 0 <= found.high
    assert 0.925 <= covered / trials <= 0.99


def test_one_seed_is_no_spread() -> None:
    with pytest.raises(ValueError, match="two or more"):
        combine([sums_of(np.array([1, 0, -1]))], np.ones(3))


def a_report(folder: Path, share: float, seed: int, margin: float = 0.05, rows: int = 200) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(seed)
    table = [
        {"id": f"e{at}", "conversation": f"c{at // 2}", "candidate": name, "quality": json.dumps({"correct": correct})}
        for name, right in (("adapter", generator.random(rows) < share), ("teacher", np.arange(rows) % 5 > 0))
        for at, correct in enumerate(right.astype(float))
    ]
    pq.write_table(pa.Table.from_pylist(table), folder / "predictions.parquet")
    report = {
        "gate": {"candidate": "adapter", "baseline": "teacher", "basis": "quality"},
        "settings": {"margin": margin, "alpha": 0.05},
    }
    (folder / "report.json").write_text(json.dumps(report))
    write_manifest(folder, "report", settings_passed={}, settings_used={"task": TASK}, inputs=[], facts={})
    return folder


def test_command_combines_reports_of_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [a_report(tmp_path / f"r{seed}", 0.85, seed) for seed in range(3)]
    assert main(["seeds", *map(str, folders), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["seeds"], found["rows"], found["conversations"]) == (3, 200, 100)
    assert [run["baseline_value"] for run in found["runs"]] == pytest.approx([0.8] * 3)
    assert found["difference"] == pytest.approx(np.mean([run["difference"] for run in found["runs"]]))
    assert found["low"] < found["difference"] < found["high"]
    assert main(["seeds", *map(str, folders)]) == 0
    assert "between seeds the standard deviation is" in capsys.readouterr().out


def test_reports_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first = a_report(tmp_path / "first", 0.85, 1)
    with pytest.raises(PotstillError, match="found 1 report, expected two"):
        seeds_of([first])
    with pytest.raises(PotstillError, match="named twice"):
        seeds_of([first, first])
    with pytest.raises(PotstillError, match=r"margin is 0\.1, in .* 0\.05"):
        seeds_of([first, a_report(tmp_path / "wider", 0.85, 2, margin=0.1)])
    with pytest.raises(PotstillError, match="150 judged rows that are not the 200"):
        seeds_of([first, a_report(tmp_path / "fewer", 0.85, 2, rows=150)])
