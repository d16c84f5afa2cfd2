"""Evaluate: adapter and artifact -> report. Every candidate answers the same held-out rows, and the gate is judged.

In:  dataset (its sealed split), adapter, artifact; the gold file, when there is one.
Out: plan.json (what was fixed before any answer was read), report.json, predictions.parquet, report.html, report.md.
Run: potstill evaluate RECIPE, or within potstill run.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from potstill.contract import Contract
from potstill.errors import EngineFailure, ParityMismatch, RecipeError
from potstill.intervals import Resampling
from potstill.manifest import Input, Manifest, read_manifest, sha256_file, sha256_json, write_atomically
from potstill.progress import say
from potstill.recipe import PathText, Section
from potstill.records import Json
from potstill.stage import Noun, Shared, Upstream
from potstill.tasks import Task

from .again import written_again as written_again
from .candidates import Answer, Candidate, answers_of, build, expand, facts_of
from .costs import PriceList, cost_of
from .gate import GateRule, headline, judge, judged
from .origins import trained_on
from .page import write_html
from .report import (
    Predictions,
    Rules,
    candidate_entry,
    compare,
    comparisons_of,
    confusions_of,
    correct_rate,
    predictions_of,
    write_predictions,
)
from .report_markdown import write_markdown
from .rows import HeldOut, read_held_out

NOUN: Noun = "report"
NEEDS: tuple[Noun, ...] = ("dataset", "adapter", "artifact")
# More failed requests than this say that the engine is broken, not that the model is poor.
MAX_FAILED = 0.01

DATASET_FACTS = ("rows", "steps", "rejections", "redacted", "leakage")

Share = Annotated[float, Field(ge=0, le=1)]
Price = Annotated[float | None, Field(ge=0)]


class Prices(Section):
    """US dollars: the teacher's by the million tokens, the machine's (for every local candidate) by the hour."""

    usd_per_million_prompt_tokens: Price = None
    usd_per_million_completion_tokens: Price = None
    usd_per_hour: Price = None


class Gate(Section):
    """Who must be how good against whom. Without `candidate` it is the exported file."""

    candidate: str | None = None
    baseline: str = "teacher"
    require: Literal["non_inferior", "superior"] = "non_inferior"
    max_quantisation_loss: Share | None = None
    min_valid_rate: Share | None = None


class Settings(Section):
    """The `evaluate` section. `margin` is a share of the primary metric: 0.02 is two points of accuracy."""

    baseline: Literal["recorded"] = "recorded"
    gold: PathText | None = None
    margin: Share = 0.02
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    resamples: Annotated[int, Field(ge=1000)] = 10_000
    seed: int = 0
    candidates: Annotated[list[str], Field(min_length=1)] = Field(default=["teacher", "base", "adapter", "artifacts"])
    max_rows: Annotated[int, Field(ge=1)] | None = None
    parallel: Annotated[int, Field(ge=1, le=256)] = 4
    prices: Prices = Prices()
    gate: Gate = Gate()


def inputs(settings: Settings, shared: Shared) -> list[Input]:
    """The gold file; raises RecipeError when it is not there."""
    if settings.gold is None:
        return []
    path = Path(settings.gold)
    if not path.is_file():
        raise RecipeError([f"evaluate.gold: {path} does not exist; give the file of {{id, answer}} lines"])
    return [Input("gold", str(path), sha256_file(path))]


def main(settings: Settings, shared: Shared, upstream: Upstream, out: Path) -> Json:
    """Returns the facts of the report: its gate, headline, and each candidate in brief."""
    task = shared.task()
    manifests = {noun: read_manifest(upstream[noun], noun, verify=False) for noun in NEEDS}
    refuse_another_prompt(manifests["dataset"], Contract.read(upstream["artifact"]))
    gold = Path(settings.gold) if settings.gold else None
    rows = read_held_out(upstream["dataset"], gold, task, max_rows=settings.max_rows, seed=settings.seed)
    names = expand(settings.candidates, manifests["artifact"])
    rule = GateRule(**{**settings.gate.model_dump(), "candidate": judged(settings.gate.candidate, names)})
    judged(rule.baseline, names)
    write_plan(out, settings, rule, names, rows, task)
    candidates = build(names, rows.examples, shared, upstream, settings.parallel)
    return evaluate(settings, shared, upstream, out, rows=rows, rule=rule, candidates=candidates, manifests=manifests)


def evaluate(
    settings: Settings,
    shared: Shared,
    upstream: Upstream,
    out: Path,
    *,
    rows: HeldOut,
    rule: GateRule,
    candidates: Sequence[Candidate],
    manifests: dict[Noun, Manifest],
) -> Json:
    """Gather every candidate's answers, judge them, write the report."""
    task, contract = shared.task(), Contract.read(upstream["artifact"])
    answers = {
        each.name: answers_of(
            each, rows.examples, task=task, max_tokens=contract.max_tokens, stop=contract.stop,
            dataset_digest=manifests["dataset"].digest, cache=shared.cache_dir,
        )
        for each in candidates
    }  # fmt: skip
    refuse_broken_engine(rule.candidate, answers[rule.candidate])
    predictions = {name: predictions_of(name, found, rows, task) for name, found in answers.items()}
    report = assemble(settings, shared, rows, rule, candidates, answers, predictions, manifests)
    write_atomically(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode())
    write_predictions(out / "predictions.parquet", predictions, rows, task)
    write_html(out / "report.html", report, rows, predictions, task)
    write_markdown(out / "report.md", report, rows, predictions, task)
    say(report["headline"]["title"])
    return {
        "gate": report["gate"],
        "headline": report["headline"]["title"],
        "rows": report["rows"],
        "candidates": {name: brief(entry) for name, entry in report["candidates"].items()},
    }


def refuse_another_prompt(dataset: Manifest, contract: Contract) -> None:
    """The artifact must have been trained with this dataset's prompt treatment, or its rows are not its prompts."""
    rule = dataset.facts.get("prompt_rule")
    if rule is not None and sha256_json(rule) != sha256_json(contract.prompt_rule):
        raise ParityMismatch(
            "prompt_rule: the artifact's contract holds another rule than the dataset's manifest; evaluate it on the "
            "dataset that it was trained from, or train and export again"
        )


def refuse_broken_engine(name: str, answers: Sequence[Answer]) -> None:
    failed = [each for each in answers if each.error]
    if len(failed) > MAX_FAILED * len(answers):
        raise EngineFailure(
            f"{name}: {len(failed)} of {len(answers)} requests failed (at most {MAX_FAILED:.0%} may); the first says: "
            f"{failed[0].error}; the answers so far are kept, run again when the engine is well"
        )


def rules_of(settings: Settings, rows: HeldOut) -> Rules:
    """Quality decides only on gold: corrected rows are those that somebody complained about, no fair sample."""
    how = Resampling(settings.alpha, settings.resamples, settings.seed)
    return Rules(settings.margin, "quality" if rows.source == "gold" else "agreement", how)


def write_plan(out: Path, settings: Settings, rule: GateRule, names: Sequence[str], rows: HeldOut, task: Task) -> None:
    """plan.json, before any answer is read: a margin chosen after seeing the result is no margin."""
    plan = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "gate": asdict(rule),
        "basis": rules_of(settings, rows).basis,
        "metric": task.metrics[0].name,
        "margin": settings.margin,
        "alpha": settings.alpha,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "candidates": list(names),
        "rows": len(rows.examples),
        "row_ids_sha256": sha256_json([each.id for each in rows.examples]),
    }
    write_atomically(out / "plan.json", json.dumps(plan, indent=1).encode())


def assemble(
    settings: Settings,
    shared: Shared,
    rows: HeldOut,
    rule: GateRule,
    candidates: Sequence[Candidate],
    answers: dict[str, list[Answer]],
    predictions: Predictions,
    manifests: dict[Noun, Manifest],
) -> Json:
    """The whole of report.json."""
    task, rules = shared.task(), rules_of(settings, rows)
    prices = PriceList(**settings.prices.model_dump())
    entries: dict[str, Json] = {}
    for each in candidates:
        found = predictions[each.name]
        rate = correct_rate(found) if rows.source == "gold" else None
        cost = cost_of(answers[each.name], prices, rate, recorded=each.open is None)
        entries[each.name] = candidate_entry(each.name, found, task, rules.how)
        entries[each.name] |= {"cost": cost.to_json(), **facts_of(each)}
    comparisons = comparisons_of(predictions, task, rules)
    if not any((each["candidate"], each["baseline"]) == (rule.candidate, rule.baseline) for each in comparisons):
        extra = compare(rule.candidate, rule.baseline, predictions, task, rules)
        comparisons = [extra, *comparisons] if extra else comparisons
    gate = judge(rule, comparisons, entries, rows.source)
    return {
        "name": shared.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "headline": headline(gate, comparisons, entries, settings.margin),
        "gate": gate,
        "metric": task.metrics[0].name,
        "task": task.kind,
        "rows": rows_entry(rows),
        "candidates": entries,
        "comparisons": comparisons,
        "confusions": {
            name: confusions_of(name, predictions[name], rows, task)
            for name in dict.fromkeys((rule.candidate, rule.baseline))
        },
        "settings": settings.model_dump(mode="json"),
        "seed": settings.seed,
        "dataset": {
            "digest": manifests["dataset"].digest,
            **{key: manifests["dataset"].facts.get(key, {}) for key in DATASET_FACTS},
        },
        "trained_on": trained_on(manifests),
        "lineage": lineage(settings, manifests),
    }


def rows_entry(rows: HeldOut) -> Json:
    return {
        "sealed": rows.sealed,
        "evaluated": len(rows.examples),
        "conversations": len(set(rows.clusters)),
        "with_teacher_answer": len(rows.teacher),
        "quality_source": rows.source,
        "with_gold": len(rows.gold),
        "without_gold": rows.without_gold(),
        "gold_invalid": len(rows.faults),
        "gold_faults": [asdict(each) for each in rows.faults],
    }


def lineage(settings: Settings, manifests: dict[Noun, Manifest]) -> list[Json]:
    """Every folder and file that the report stands on, with its digest, and what each was made from."""
    found = [
        {"what": noun, "digest": manifest.digest, "created": manifest.created, "commit": manifest.code.get("commit"),
         "made_from": [asdict(each) for each in manifest.inputs]}
        for noun, manifest in manifests.items()
    ]  # fmt: skip
    if settings.gold:
        found.append({"what": "gold", "digest": sha256_file(Path(settings.gold)), "path": settings.gold})
    return found


def brief(entry: Json) -> Json:
    """What a manifest and a table need of a candidate."""
    return {
        "quality": entry["quality"] and {key: entry["quality"][key] for key in ("metric", "value", "low", "high", "n")},
        "agreement": entry["agreement"] and entry["agreement"]["value"],
        "valid_rate": entry["valid_rate"],
        "latency_p50_ms": entry["latency_ms"]["p50"],
        "size_bytes": entry["size_bytes"],
    }
