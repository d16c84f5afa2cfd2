"""The comparison, top to bottom: dataset, slice, then each base trained and asked in processes of its own.

Everything stands in `compare-bases-<key>/`, named by dataset, slice and training settings, not by the bases: a base
that is done there is not done again, and another one can be added later. A base that fails is a row with its reason.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from potstill import __version__
from potstill.errors import PotstillError
from potstill.manifest import MANIFEST, Input, Manifest, read_manifest, stage_key, write_atomically, write_manifest
from potstill.models import Base
from potstill.pipeline import Plan, locked, plan_stage, run_pipeline
from potstill.progress import say
from potstill.recipe import Recipe
from potstill.records import Json
from potstill.stage import Noun

from .child import ANSWERS, Job, recipe_for
from .describe import describe
from .judge import Answers, conclusion, judge
from .page import write_page
from .slices import SlicePlan, make_slice
from .watched import read_watched, run_watched

COMPARISON, PAGE = "comparison.json", "comparison.html"
JUDGED_ON = (
    "Quality is measured on validation rows that training did not see, against the answers that the dataset teaches. "
    "The sealed test split stays sealed: prove the base that you choose with `potstill run`."
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a comparison stands: its folder, the sliced dataset in it, and the dataset that was sliced."""

    folder: Path
    slice: Path
    dataset: Path


class BaseFailed(PotstillError):
    """A base that has no result; the message is the row's reason."""


def compare(
    recipe: Recipe, modules: dict[str, Any], bases: Sequence[str], plan: SlicePlan, *, track: bool = True
) -> Json:
    """Compare the bases; returns what comparison.json holds. Raises what distilling and slicing raise."""
    outcome = run_pipeline(recipe, modules, "distill", track=track)
    dataset = Path(outcome["dataset"]["path"])
    with locked(recipe.shared.work_dir):
        place = prepare(recipe, dataset, plan)
        results = [result_of(recipe, place, spec) for spec in dict.fromkeys(bases)]
        report = report_of(recipe, place, name_apart(results))
        write_report(recipe, place, report)
    return report


def prepare(recipe: Recipe, dataset: Path, plan: SlicePlan) -> Place:
    """The comparison's folder with its slice. A page of an earlier run there is no longer vouched for."""
    train = recipe.sections["train"].model_dump(mode="json")
    source = Input("dataset", str(dataset), read_manifest(dataset, "dataset", verify=False).digest)
    key = stage_key("compare-bases", {"train": train, "slice": asdict(plan), "potstill": __version__}, [source])
    folder = recipe.shared.work_dir / f"compare-bases-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    sliced = make_slice(dataset, plan, recipe.shared.task().kind, folder)
    counts = read_manifest(sliced, verify=False).facts["rows"]
    say(f"compare-bases: {counts['train']:,} rows to train on, {counts['judged']:,} validation rows to judge on")
    return Place(folder, sliced, dataset)


def result_of(recipe: Recipe, place: Place, spec: str) -> Json:
    """One row: trained and answered unless that is done; a failure is a row too."""
    try:
        mine, module = recipe_for(recipe.path, recipe.overrides, spec, place.folder)
        made: dict[Noun, Manifest | None] = {"dataset": read_manifest(place.slice, "dataset", verify=False)}
        plan = plan_stage(mine, "train", module, made)
        say(f"{spec}: {'trained before' if plan.done else plan.why}")
        adapter = train_base(recipe, place, spec, plan)
        answers = answer_rows(recipe, place, spec, plan, adapter)
        source = adapter.facts["base"]
        described = describe(_base(spec, source)).to_json()
    except (PotstillError, OSError) as fault:
        say(f"{spec}: no result: {fault}")
        return {"spec": spec, "status": "failed", "reason": str(fault)}
    return {
        "spec": spec,
        "status": "done",
        "digest": source["digest"],
        "adapter": plan.folder.name,
        "answers": answers_folder(place, plan).name,
        **described,
        "training": training_figures(place, plan, adapter, mine.sections["train"]),
        "serving": serving_figures(answers.facts, recipe),
    }


def _base(spec: str, source: Json) -> Base:
    """The base as training found it; its GGUF, where it was made from one."""
    from potstill.models import locate

    found = locate(spec)
    gguf = found if found is not None and found.is_file() else None
    return Base(spec, Path(source["path"]), source["digest"], gguf)


def train_base(recipe: Recipe, place: Place, spec: str, plan: Plan) -> Manifest:
    """The adapter's manifest, after training where there is none."""
    if not plan.done:
        _run(recipe, place, spec, "train", plan)
    return read_manifest(plan.folder, "adapter")


def answers_folder(place: Place, plan: Plan) -> Path:
    return place.folder / f"answers-{plan.key}"


def answer_rows(recipe: Recipe, place: Place, spec: str, plan: Plan, adapter: Manifest) -> Manifest:
    """The manifest of the answers to the judged rows, asked for where there are none."""
    out = answers_folder(place, plan)
    if (out / MANIFEST).is_file():
        return read_manifest(out, "answers")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    figures = _run(recipe, place, spec, "answer", plan)
    sliced = read_manifest(place.slice, verify=False)
    inputs = [Input("adapter", str(plan.folder), adapter.digest), Input("dataset", str(place.slice), sliced.digest)]
    facts = figures | {"peak_memory_bytes": read_watched(_beside(place, "answer", plan, "took")).peak_bytes}
    return write_manifest(
        out, "answers", settings_passed={}, settings_used={}, inputs=inputs, facts=facts, key=plan.key
    )


def _beside(place: Place, do: str, plan: Plan, what: str) -> Path:
    return place.folder / "jobs" / f"{do}-{plan.key}.{what}.json"


def _run(recipe: Recipe, place: Place, spec: str, do: Any, plan: Plan) -> Json:
    """One step in a child process; raises BaseFailed with the reason when it does not end well."""
    outcome, took = _beside(place, do, plan, "outcome"), _beside(place, do, plan, "took")
    job = Job(
        do=do, recipe=str(recipe.path), overrides=tuple(recipe.overrides), spec=spec, folder=str(place.folder),
        dataset=str(place.slice), adapter=str(plan.folder), out=str(answers_folder(place, plan)), outcome=str(outcome),
    )  # fmt: skip
    file = _beside(place, do, plan, "job")
    job.write(file)
    outcome.unlink(missing_ok=True)
    code = run_watched([sys.executable, "-m", "potstill.comparing.child", str(file)], took)
    said: Json = json.loads(outcome.read_text()) if outcome.is_file() else {}
    if code == 0 and "done" in said:
        return dict(said["done"])
    raise BaseFailed(reason_of(code, said.get("failed"), read_watched(took).peak_bytes))


def reason_of(code: int, failed: Json | None, peak: int) -> str:
    """Why a step ended, in a line: what it said, or what its exit code means."""
    if failed is not None:
        kind, message = failed["kind"], " ".join(str(failed["message"]).split())[:400]
        if kind in ("MemoryError", "OutOfMemoryError") or "out of memory" in message or "allocate memory" in message:
            return f"out of memory: {message or kind}"
        if "Gated" in kind or "GatedRepo" in message:
            return f"licence gated: accept it on the hub and log in there, then run again ({message})"
        known = kind in ("PotstillError", "NothingLearned", "RecipeError", "ParityMismatch", "DamagedInput")
        return message if known else f"{kind}: {message}"
    held = f"; it held {peak / 2**30:.1f} GiB when last seen" if peak else ""
    if code == -9:
        return f"killed by the system, most likely out of memory{held}"
    return f"ended by signal {-code}{held}" if code < 0 else f"ended with code {code} without a word{held}"


def training_figures(place: Place, plan: Plan, adapter: Manifest, settings: Any) -> Json:
    """Measured on the slice, and the time for the whole recipe: steps grow with the tokens, all else stays."""
    learnt, took = adapter.facts.get("training", {}), read_watched(_beside(place, "train", plan, "took"))
    larger = float(read_manifest(place.slice, verify=False).facts["slice_of"]["times_larger"])
    if getattr(settings, "max_steps", None):
        larger = 1.0  # the number of steps is fixed, whatever the rows
    tokens, speed = learnt.get("tokens_an_epoch"), learnt.get("tokens_per_second")
    steps_s = tokens * float(getattr(settings, "epochs", 1.0)) / speed if tokens and speed else took.seconds
    outcome = _beside(place, "train", plan, "outcome")
    said = json.loads(outcome.read_text()) if outcome.is_file() else {}
    return {
        "tokens_per_second": speed,
        "steps": learnt.get("steps"),
        "seconds": round(took.seconds, 1),
        "full_seconds": round(took.seconds + min(steps_s, took.seconds) * (larger - 1), 1),
        "peak_memory_bytes": took.peak_bytes,
        "gpu_peak_bytes": said.get("done", {}).get("gpu_peak_bytes"),
    }


def serving_figures(facts: Json, recipe: Recipe) -> Json:
    """What answers cost: machine-seconds for a thousand, and dollars for a million where the recipe has a price."""
    seconds, rows = max(float(facts["seconds"]), 1e-9), int(facts["rows"])
    price = recipe.sections["evaluate"].model_dump().get("prices", {}).get("usd_per_hour")
    return {
        "engine": "transformers, batched",
        "answers_per_second": rows / seconds,
        "tokens_per_second": facts["answer_tokens"] / seconds,
        "seconds_per_thousand": 1000 * seconds / rows,
        "usd_per_hour": price,
        "usd_per_million": None if price is None else price / 3600 * 1e6 * seconds / rows,
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "gpu_peak_bytes": facts.get("gpu_peak_bytes"),
    }


def name_apart(results: Sequence[Json]) -> list[Json]:
    """Rows with a short name each: the last word of the spec, the whole where two would be called alike."""
    short = [row["spec"].rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf") for row in results]
    return [
        {"name": name if short.count(name) == 1 else row["spec"], **row}
        for name, row in zip(short, results, strict=True)
    ]


def report_of(recipe: Recipe, place: Place, rows: Sequence[Json]) -> Json:
    """The comparison as one JSON object: the rows with their judgements, best first, and what follows."""
    metric = recipe.shared.task().metrics[0]
    answers = {
        row["spec"]: Answers.read(place.folder / row["answers"] / ANSWERS) for row in rows if row["status"] == "done"
    }
    judged = judge(metric, answers)
    full: list[Json] = []
    for row in rows:
        mine = judged.get(row["spec"])
        if mine is not None:
            full.append({**row, **mine.to_json()})
        elif row["status"] == "done":
            full.append({**row, "status": "failed", "reason": f"{metric.name} is not defined on the judged rows"})
        else:
            full.append(dict(row))
    full.sort(key=lambda row: -row["quality"]["value"] if row["status"] == "done" else 1.0)
    facts = read_manifest(place.slice, verify=False).facts
    return {
        "name": recipe.shared.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(place.folder),
        "metric": metric.name,
        "task": recipe.shared.task().kind,
        "slice": facts["rows"],
        "whole": facts["slice_of"],
        "judged_on": JUDGED_ON,
        "conclusion": conclusion(full),
        "bases": full,
    }


def write_report(recipe: Recipe, place: Place, report: Json) -> None:
    """comparison.json and comparison.html, then the manifest."""
    write_atomically(place.folder / COMPARISON, json.dumps(report, indent=1, ensure_ascii=False).encode())
    write_page(place.folder / PAGE, report)
    whole = read_manifest(place.dataset, verify=False)
    brief = {row["spec"]: row.get("quality") or row.get("reason") for row in report["bases"]}
    write_manifest(
        place.folder,
        "comparison",
        settings_passed={"overrides": list(recipe.overrides)},
        settings_used={
            "bases": [row["spec"] for row in report["bases"]],
            "train": recipe.sections["train"].model_dump(),
        },
        inputs=[Input("dataset", str(place.dataset), whole.digest)],
        facts={"bases": brief, "conclusion": report["conclusion"]},
        key=place.folder.name.rpartition("-")[2],
        command=" ".join(["potstill", *sys.argv[1:]]),
    )
