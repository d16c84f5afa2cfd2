"""A finished report is written again as a page, as Markdown or as JSON, without asking any model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from evaluation.again import written_again
from potstill.cli import main
from potstill.manifest import Input, read_manifest, write_manifest
from tests.stages.report_reader import Page, differing, read_report
from tests.stages.test_evaluation import STUDENTS, TASK
from tests.stages.test_report_page import made


def test_a_finished_report_is_written_again_without_asking_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = made(tmp_path)
    bench.evaluate(bench.settings(), STUDENTS)
    manifest = read_manifest(bench.upstream["dataset"], "dataset")
    write_manifest(
        bench.out, "report", settings_passed={}, settings_used={"task": TASK},
        inputs=[Input("dataset", str(bench.upstream["dataset"]), manifest.digest)], facts={},
    )  # fmt: skip
    assert written_again(bench.out, "html") == (bench.out / "report.html").read_text()
    assert written_again(bench.out, "md") == (bench.out / "report.md").read_text()
    assert json.loads(written_again(bench.out, "json")) == read_report(bench.out)
    assert main(["report", str(bench.out), "--format", "html", "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == (bench.out / "report.html").read_bytes()
    capsys.readouterr()
    assert main(["report", str(bench.out)]) == 0
    assert capsys.readouterr().out == (bench.out / "report.md").read_text()


def test_written_again_without_the_dataset_the_rows_keep_their_ids(tmp_path: Path) -> None:
    bench = made(tmp_path)
    report = bench.evaluate(bench.settings(), STUDENTS)
    gone = [Input("dataset", str(tmp_path / "gone"), "d" * 64)]
    write_manifest(bench.out, "report", settings_passed={}, settings_used={"task": TASK}, inputs=gone, facts={})
    rows = Page(written_again(bench.out, "html")).region("Rows that differ")
    assert len(rows) == len(differing(bench, report))
    assert all("not at hand" in row[0] and re.search(r"e\d+$", row[0]) for row in rows)
