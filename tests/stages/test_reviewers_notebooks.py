"""The notebooks for reviewers, executed on tiny data: they show the figures of what they read, and change nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from potstill.intervals import Resampling, paired_difference
from potstill.manifest import Input, read_manifest, sha256_file, write_manifest
from potstill.records import Json
from potstill.stage import Shared
from potstill.tasks import task_from
from tests.stages.test_evaluation import FILE, TASK, Bench, right_but, truth, write_folders, write_gold
from tests.stages.test_notebook import NOTEBOOKS
from tests.unit.distil_log import Distil
from tests.unit.mail_log import LABELS, correction, exchange

ROWS = 300


def executed(name: str) -> str:
    """Everything that the notebook showed, as text; raises when a cell fails."""
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}).execute()
    outputs = [each for cell in notebook.cells if cell.cell_type == "code" for each in cell.outputs]
    return "\n".join(_text(each) for each in outputs)


def _text(output: Any) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return "(picture)"
    return str(output.get("text") or data.get("text/html") or data.get("text/plain") or "")


def digests(folder: Path) -> dict[Path, str]:
    return {path: sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def finished(folder: Path, bench: Bench, report: Json) -> Path:
    """The report folder with its manifest, as the pipeline leaves it."""
    dataset = read_manifest(bench.upstream["dataset"], "dataset")
    write_manifest(
        folder, "report", settings_passed={}, settings_used={"task": TASK},
        inputs=[Input("dataset", str(bench.upstream["dataset"]), dataset.digest)], facts={"gate": report["gate"]},
    )  # fmt: skip
    return folder


@pytest.fixture
def reports(tmp_path: Path) -> list[Path]:
    """Two finished reports on the same rows: a good student and a better one."""
    work = tmp_path / "work"
    work.mkdir()
    gold = write_gold(tmp_path / "gold.jsonl.gz", {f"e{row}": truth(row) for row in range(ROWS)})
    upstream = write_folders(tmp_path)
    made = []
    for name, wrong in (("report-old", 0.2), ("report-new", 0.04)):
        folder = work / name
        folder.mkdir()
        bench = Bench(Shared("toy", TASK, "tiny", tmp_path / name / "toy", "sqlite:///x.db"), upstream, gold, folder)
        made.append(finished(folder, bench, bench.evaluate(bench.settings(), {FILE: right_but(wrong, seed=4)})))
    version = work / "version-1"
    version.mkdir()
    digest = read_manifest(made[1]).digest
    described = {"model": "toy", "version": "7", "aliases": ["champion"], "lineage": {"report": digest}}
    (version / "version.json").write_text(json.dumps(described))
    return made


def test_error_analysis_shows_the_errors_that_the_report_counts(
    reports: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = reports[0]
    monkeypatch.setenv("POTSTILL_REPORT", str(folder))
    before = digests(folder)
    said = executed("error_analysis")
    report = json.loads((folder / "report.json").read_text())
    share = 1 - report["candidates"][FILE]["quality"]["value"]
    assert report["headline"]["title"] in said
    assert f"{ROWS} rows judged by quality; {round(share * ROWS)} wrong ({share:.1%})" in said
    assert "(picture)" in said
    mistakes = [each for each in report["confusions"][FILE] if each["reference"] != each["answer"]]
    for each in mistakes:
        assert re.search(rf"{each['answer']}</th>\s*<td>{each['n']}</td>", said)
    assert digests(folder) == before


def test_compare_versions_pairs_the_rows_of_two_reports(reports: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setenv("POTSTILL_REPORTS", ":".join(map(str, reversed(reports))))
    before = [digests(each) for each in reports]
    said = executed("compare_versions")
    answers = []
    for folder in reports:
        rows = pq.read_table(folder / "predictions.parquet").to_pylist()
        answers.append([each for each in rows if each["candidate"] == FILE])
    old, new = ([json.loads(each["quality"]) for each in rows] for rows in answers)
    clusters = [each["conversation"] for each in answers[0]]
    how = Resampling(0.05, 1000, 0)
    difference = paired_difference(task_from(TASK).metrics[0], new, old, clusters, how)
    assert difference is not None
    assert f"{round(difference.value, 4)}" in said
    assert f"{round(difference.low, 4)}" in said
    assert "superior" in said
    assert "toy 7 (champion)" in said
    sides = sum(one != other for one, other in zip(old, new, strict=True))
    assert f"{sides} of {ROWS} rows changed sides" in said
    assert [digests(each) for each in reports] == before


def test_compare_versions_of_one_report_says_so_without_failing(
    reports: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_REPORTS", str(reports[0]))
    said = executed("compare_versions")
    assert "1 reports: report-old" in said
    assert "0 of 0 rows changed sides" in said


def test_inspect_dataset_shows_what_was_kept_and_what_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [exchange(at) for at in range(60)] + [exchange(at, label="no label") for at in range(60, 66)]
    lines += [exchange(at, feedback=correction(LABELS[(at + 1) % 3])) for at in range(66, 72)]
    made = Distil(tmp_path, Shared("mail", {}, "none", tmp_path / "work", "sqlite:///x.db"))(lines)
    write_manifest(made.out, "dataset", settings_passed={}, settings_used={"name": "mail"}, inputs=(), facts=made.facts)
    monkeypatch.setenv("POTSTILL_DATASET", str(made.out))
    before = digests(made.out)
    said = executed("inspect_dataset")
    assert f"{len(made.rejected)} rejected rows" in said
    assert made.rejected
    for split in ("train", "validation"):
        assert re.search(rf"{split}</th>\s*<td>{len(made.rows[split])}</td>", said)
    for reason, n in made.facts["rejections"].items():
        assert re.search(rf"{re.escape(reason)}</th>\s*<td>{n}</td>", said)
    assert "(picture)" in said
    assert not [each for each in made.rows["test"] if each.messages[-1]["content"] in said]  # the sealed split stays so
    assert digests(made.out) == before
