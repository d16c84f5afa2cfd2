"""A finished report folder written out again as HTML, Markdown or JSON, without asking any model.

Figures come from report.json, answers from predictions.parquet. Prompts stand in the sealed split alone: without that
dataset folder the page shows the rows by their ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from potstill.dataset import read_sealed
from potstill.errors import DamagedInput
from potstill.manifest import Manifest, read_manifest
from potstill.records import Example, Json, Prediction
from potstill.tasks import Task, task_from

from .page import page_of, read_plan
from .page.differences import disagreements
from .report import Predictions
from .report_markdown import markdown_of
from .rows import HeldOut

Format = Literal["html", "md", "json"]


def written_again(folder: Path, form: Format) -> str:
    """The report of a finished folder as text; raises DamagedInput where its files do not fit together."""
    manifest = read_manifest(folder, "report")
    report: Json = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if form == "json":
        return json.dumps(report, indent=1, ensure_ascii=False)
    task = task_from(manifest.settings_used["task"])
    rows, predictions = read_answers(folder / "predictions.parquet", report, task, prompts_of(manifest))
    differing = disagreements(rows, predictions, report["gate"]["candidate"], report["gate"]["baseline"], task)
    make = page_of if form == "html" else markdown_of
    return make(report, differing, read_plan(folder))


def prompts_of(manifest: Manifest) -> dict[str, Example]:
    """The held-out rows by id; none where the dataset folder is gone or is another by now."""
    source = next((each for each in manifest.inputs if each.role == "dataset"), None)
    if source is None or not Path(source.path).is_dir():
        return {}
    if read_manifest(Path(source.path), "dataset", verify=False).digest != source.digest:
        return {}
    return {each.id: each for each in read_sealed(Path(source.path))}


def read_answers(
    path: Path, report: Json, task: Task, prompts: Mapping[str, Example]
) -> tuple[HeldOut, dict[str, list[Prediction]]]:
    """The held-out rows and every candidate's predictions, in stored order."""
    import pyarrow.parquet as pq

    names = [each.name for each in fields(Prediction)]
    predictions: dict[str, list[Prediction]] = {}
    gold: dict[str, Any] = {}
    teacher: dict[str, Any] = {}
    for row in pq.read_table(path).to_pylist():
        given = {key: row[key] for key in names if key in row} | {
            key: json.loads(row[key]) for key in ("quality", "agreement")
        }
        predictions.setdefault(row["candidate"], []).append(Prediction(**given))
        example = prompts.get(row["id"])
        for known, text in ((gold, row["gold"]), (teacher, row["teacher"])):
            if text is not None and row["id"] not in known:
                known[row["id"]] = task.parse(text, example.tools if example else ()).value
    first = next(iter(predictions.values()), [])
    if any([each.id for each in found] != [each.id for each in first] for found in predictions.values()):
        raise DamagedInput(f"{path}: the candidates' rows differ; evaluate again")
    examples = [prompts.get(each.id) or _unknown(each) for each in first]
    source = report["rows"]["quality_source"]
    return HeldOut(examples, report["rows"]["sealed"], gold, teacher, source), predictions


def _unknown(prediction: Prediction) -> Example:
    prompt = [{"role": "user", "content": "(the dataset with this prompt is not at hand)"}]
    return Example(prediction.id, prediction.conversation, prompt, prompt, "", None, "")


__all__ = ["Format", "Predictions", "written_again"]
