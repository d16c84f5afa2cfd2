"""What a finished stage folder tells MLflow: its run's parameters, figures, curves, datasets and files.

`record_folder` logs one folder as one run, `record_candidates` one run and one logged model for each candidate of a
report, so that candidates stand side by side in MLflow's own comparison.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from potstill.manifest import Manifest, read_manifest, sha256_json
from potstill.records import Json
from potstill.tracking import (
    DatasetUse,
    Point,
    Tracking,
    epoch_ms,
    flat_numbers,
    link_models,
    log_stage,
    logged_model,
    model_name,
)

PARAMS_A_RUN = 15
STAGE_OF = {"dataset": "distill", "adapter": "train", "artifact": "export", "report": "evaluate", "version": "register"}
# The files a reviewer opens, rather than the weights: those are copied once, with the version.
FILES_OF = {
    "dataset": ("card.md", "manifest.json"),
    "adapter": ("contract.json", "trainer_log.jsonl", "training.svg", "then_log.jsonl", "then.svg", "manifest.json"),
    "artifact": ("verification.json", "contract.json", "manifest.json"),
    "report": ("report.html", "report.md", "report.json", "manifest.json"),
}
CONTEXT_OF = {"dataset": "distillation", "adapter": "training", "artifact": "verification", "report": "evaluation"}


def record_folder(tracking: Tracking, experiment: str, folder: Path) -> str:
    """The id of the run that stands for a finished stage folder (dataset, adapter, artifact or report)."""
    manifest = read_manifest(folder, verify=False)
    return log_stage(
        tracking,
        experiment,
        STAGE_OF[manifest.kind],
        manifest,
        folder,
        params=chosen_params(manifest),
        metrics=report_metrics(folder) if manifest.kind == "report" else flat_numbers(manifest.facts),
        artifacts=[name for name in FILES_OF[manifest.kind] if (folder / name).is_file()],
        datasets=datasets_read(experiment, manifest, folder),
        points=training_curves(folder / "trainer_log.jsonl", epoch_ms(manifest.created))
        + training_curves(folder / "then_log.jsonl", epoch_ms(manifest.created), then_line),
        tags=report_tags(folder) if manifest.kind == "report" else {},
    )


def chosen_params(manifest: Manifest) -> dict[str, str]:
    """Some fifteen settings: those that the recipe's author wrote first, then the defaults in their order."""
    passed, used = _flat_settings(manifest.settings_passed), _flat_settings(manifest.settings_used)
    ordered = [key for key in passed if key in used] + [key for key in used if key not in passed]
    return {key: used[key] for key in ordered[:PARAMS_A_RUN]}


def _flat_settings(settings: Json, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat_settings(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            found[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)[:500]
        elif value is not None:
            found[f"{prefix}{key}"] = str(value)
    return found


def datasets_read(experiment: str, manifest: Manifest, folder: Path) -> list[DatasetUse]:
    """The traffic a dataset was made from, or the dataset that a later stage read."""
    roles = ("traffic",) if manifest.kind == "dataset" else ("dataset",)
    uses = [
        DatasetUse(f"{experiment}-{each.role}", each.digest, each.path, CONTEXT_OF[manifest.kind])
        for each in manifest.inputs
        if each.role.split(".")[0] in roles
    ]
    if manifest.kind == "dataset":
        uses.append(DatasetUse(f"{experiment}-dataset", manifest.digest, str(folder), "made"))
    return uses


def then_line(line: Json) -> Json:
    """A line of the second phase's log under names of its own: its steps begin anew."""
    return {key if key in ("step", "time") else f"then.{key}": value for key, value in line.items()}


def training_curves(
    path: Path, ended_ms: int | None = None, as_line: Callable[[Json], Json] = lambda line: line
) -> list[Point]:
    """Every number of every line of a trainer log, at its step; `time` (seconds since 1970) is used where given."""
    if not path.is_file():
        return []
    return [point for line in path.read_text().splitlines() for point in points_of(as_line(json.loads(line)), ended_ms)]


def points_of(line: Json, ended_ms: int | None = None) -> list[Point]:
    """One line of a trainer log as metric values."""
    step, time = int(line.get("step", 0)), line.get("time")
    time_ms = int(1000 * time) if isinstance(time, (int, float)) else ended_ms
    rest = {key: value for key, value in line.items() if key not in ("step", "time")}
    return [Point(key, value, step, time_ms) for key, value in flat_numbers(rest).items()]


def shipped_candidate(report: Json) -> str | None:
    """The candidate that the gate is about: an exported file before the adapter."""
    names = list(report.get("candidates", {}))
    named = report.get("gate", {}).get("candidate")
    ranked = [named, *(name for name in names if name.startswith("artifact:")), "adapter"]
    return next((name for name in ranked if name in names), None)


def candidate_metrics(figures: Json) -> dict[str, float]:
    """One candidate's figures under the names that MLflow shows: quality.accuracy, quality.low, latency_p50_ms, ..."""
    found: dict[str, float] = {}
    for side in ("quality", "agreement"):
        score = figures.get(side) or {}
        if isinstance(score.get("value"), (int, float)):
            found[f"{side}.{score.get('metric', 'value')}"] = float(score["value"])
        found |= {
            f"{side}.{k}": float(score[k]) for k in ("low", "high", "n") if isinstance(score.get(k), (int, float))
        }
    latency = figures.get("latency_ms") or {}
    found |= {f"latency_{name}_ms": value for name, value in flat_numbers(latency).items() if name != "n"}
    rest = {key: value for key, value in figures.items() if key not in ("quality", "agreement", "latency_ms")}
    return found | flat_numbers(rest)


def report_metrics(folder: Path) -> dict[str, float]:
    """A report's own figures: those of the candidate that ships, and each comparison's difference and interval."""
    report = _report(folder)
    shipped = shipped_candidate(report)
    found = candidate_metrics(report["candidates"][shipped]) if shipped else {}
    for each in report.get("comparisons", []):
        name = f"difference.{model_name(each['candidate'])}.{model_name(each['baseline'])}"
        numbers = flat_numbers({key: each.get(key) for key in ("difference", "low", "high")})
        found |= {name if key == "difference" else f"{name}.{key}": value for key, value in numbers.items()}
    return found


def report_tags(folder: Path) -> dict[str, str]:
    """The gate's answer and each comparison's verdict, to filter runs by."""
    report = _report(folder)
    tags = {"potstill.gate": gate_word(report), "potstill.shipped": shipped_candidate(report) or ""}
    for each in report.get("comparisons", []):
        tags[f"verdict.{model_name(each['candidate'])}.{model_name(each['baseline'])}"] = str(each.get("verdict"))
    return tags


def gate_word(report: Json) -> str:
    return "passed" if report.get("gate", {}).get("passed") is True else "failed"


def record_candidates(
    tracking: Tracking, experiment: str, report: Path, runs: Mapping[str, str], digests: Mapping[str, str]
) -> dict[str, str]:
    """Logged model ids by candidate name, each with a run under the report's own, and metrics that name both.

    `runs` gives the run of each noun (`adapter`, `artifact`, `report`), `digests` the content digest of each noun and
    of `base`: a candidate is the same model as long as its digest is.
    """
    manifest = read_manifest(report, "report", verify=False)
    datasets = datasets_read(experiment, manifest, report)
    made: dict[str, str] = {}
    for name, figures in _report(report)["candidates"].items():
        noun = name.partition(":")[0]
        digest = digests.get(noun) or digests["dataset"]  # the teacher's recorded answers are the dataset's
        model_id = logged_model(tracking, experiment, name, digest, source_run=runs.get(noun) or runs["report"])
        metrics = candidate_metrics(figures)
        run_id = log_stage(
            tracking,
            experiment,
            "candidate",
            _candidate_manifest(manifest, name),
            report,
            params={"candidate": name},
            metrics={},
            datasets=datasets,
            points=[
                Point(key, value, model_id=model_id, dataset=datasets[0] if datasets else None)
                for key, value in metrics.items()
            ],
            tags={"mlflow.parentRunId": runs["report"], "potstill.candidate": name},
        )
        link_models(tracking, run_id, read=[model_id])
        made[name] = model_id
    return made


def _candidate_manifest(report: Manifest, name: str) -> Manifest:
    """A report's manifest narrowed to one candidate: what makes the candidate's run the same one the next time."""
    fields: dict[str, Any] = {name: getattr(report, name) for name in Manifest.__slots__}
    return Manifest(**{**fields, "digest": sha256_json([report.digest, name]), "facts": {}})


def _report(folder: Path) -> Json:
    found: Json = json.loads((folder / "report.json").read_text())
    return found
