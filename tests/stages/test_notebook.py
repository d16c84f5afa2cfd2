"""The notebook: in step with its script, without outputs, and true to a report and a database that it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

from potstill.manifest import Input, Manifest, read_manifest, sha256_file, write_manifest
from potstill.stage import Shared
from potstill.tracking import default_uri, open_tracking
from potstill.tracking_stages import record_candidates, record_folder
from tests.stages.test_evaluation import STUDENTS, Bench, truth, write_folders, write_gold

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
PAIRS = sorted(NOTEBOOKS.glob("*.ipynb"))
RECIPE = "toy"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A finished report folder of scripted candidates, told to an MLflow database in its working folder."""
    work = tmp_path / "work" / RECIPE
    work.mkdir(parents=True)
    definition: dict[str, Any] = {"kind": "classification", "labels": ["negative", "neutral", "positive"]}
    shared = Shared(RECIPE, definition, "tiny", work, default_uri(work.parent))
    gold = write_gold(tmp_path / "gold.jsonl.gz", {f"e{row}": truth(row) for row in range(300)})
    folder = work / "report-1"
    folder.mkdir()
    bench = Bench(shared, write_folders(work), gold, folder)
    found = bench.evaluate(bench.settings(), STUDENTS)
    manifests: dict[str, Manifest] = {noun: read_manifest(each, noun) for noun, each in bench.upstream.items()}
    inputs = [Input(noun, str(bench.upstream[noun]), manifests[noun].digest) for noun in bench.upstream]
    inputs.append(Input("gold", str(gold), sha256_file(gold)))
    write_manifest(folder, "report", settings_passed={}, settings_used={}, inputs=inputs, facts={"gate": found["gate"]})
    tracking = open_tracking(shared.tracking_uri)
    runs = {"report": record_folder(tracking, RECIPE, folder)}
    digests = {noun: manifest.digest for noun, manifest in manifests.items()} | {"base": "b1"}
    record_candidates(tracking, RECIPE, folder, runs, digests)
    return folder


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(each.cell_type, each.source) for each in notebook.cells]


def test_there_is_a_notebook() -> None:
    assert PAIRS


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_script_and_notebook_are_in_step(path: Path) -> None:
    script = path.with_suffix(".py")
    step = f"jupytext --to ipynb {script.name} -o {path.name}"
    assert cells(jupytext.read(script)) == cells(nbformat.read(path, 4)), f"run: cd notebooks; {step}"


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_notebook_shows_the_figures_of_the_report_and_every_candidates_run(
    report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("POTSTILL_REPORT", str(report))
    monkeypatch.delenv("POTSTILL_TRACKING_URI", raising=False)
    before = {path: sha256_file(path) for path in report.iterdir()}
    notebook = nbformat.read(NOTEBOOKS / "compare_runs.ipynb", 4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}).execute()
    said = [shown(each) for cell in notebook.cells if cell.cell_type == "code" for each in cell.outputs]
    figures = json.loads((report / "report.json").read_text())
    assert figures["headline"]["title"] in said[0]
    scores = next(text for text in said if "valid answers" in text)
    for name, each in figures["candidates"].items():
        assert name in scores
        assert f"{each['quality']['value']:.3f} [{each['quality']['low']:.3f}," in scores
    assert any("image/png" in each.get("data", {}) for cell in notebook.cells for each in cell.get("outputs", []))
    for name, each in figures["candidates"].items():
        assert name in said[-1]
        assert f"{each['quality']['value']:.4g}" in said[-1]
    assert {path: sha256_file(path) for path in report.iterdir()} == before


def shown(output: Any) -> str:
    return str(output.get("text") or output.get("data", {}).get("text/html") or "")
