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
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from potstill.contract import Contract
from potstill.errors import EngineFailure, ParityMismatch, RecipeError
from potstill.intervals import Resampling
from potstill.manifest import Input, Manifest, read_manifest, sha256_file, sha256_json, write_atomically
from potstill.power import PowerRule
from potstill.progress import say
from potstill.recipe import PathText, Section
from potstill.records import Json
from potstill.signing import refuse_untrusted
from potstill.stage import Noun, Shared, Upstream
from potstill.tasks import Task

from . import judges
from .again import written_again as written_again
from .candidates import Answer, Candidate, answers_of, answers_path, build, expand, facts_of
from .costs import PriceList, cost_of
from .gate import GateRule, find, headline, judge_all, judged, largest_first
from .metrics.details import details_of
from .origins import trained_on
from .page import write_html
from .planning import (
    Change,
    after_answers,
    expected,
    in_words,
    note_plan,
    plan_of,
    validation_agreement,
    write_plan,
)
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
from .slices import slices_of

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
    """Who must be how good against whom. Without `candidate` it is the exported file.

    `choose: smallest` tests the files from the largest to the smallest and ships the last that passes.
    `max_slice_loss` refuses where some slice is shown (after Holm) to lose more than that.
    """

    candidate: str | None = None
    baseline: str = "teacher"
    require: Literal["non_inferior", "superior"] = "non_inferior"
    max_quantisation_loss: Share | None = None
    min_valid_rate: Share | None = None
    max_slice_loss: Share | None = None
    choose: Literal["smallest"] | None = None

    @model_validator(mode="after")
    def _one_way_of_choosing(self) -> Gate:
        if self.choose is not None and self.candidate is not None:
            raise ValueError(f"found candidate {self.candidate} and choose {self.choose}; give one of them")
        return self


class PlanSettings(Section):
    """Rows planned for. Below the rows that would find an equal student in `least_power` nothing is concluded (0: off).

    `differing` is the share of rows on which student and baseline are assumed to differ; not given: from validation.
    """

    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    least_power: Annotated[float, Field(ge=0, lt=1)] = 0.25
    differing: Annotated[float, Field(gt=0, le=1)] | None = None


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
    judge: judges.JudgeSettings | None = None
    plan: PlanSettings = PlanSettings()
    slices: list[str] = Field(default=[], description="metadata keys by whose values the result is divided")


def inputs(settings: Settings, shared: Shared) -> list[Input]:
    """The gold file, the judges' files and the database of SQL; raises RecipeError for one that is not there."""
    found = judges.judge_inputs(settings.judge)
    if sql := shared.task_definition.get("sql"):
        found.append(Input("sql database", sql["database"], sha256_file(Path(sql["database"]))))
    if settings.gold is None:
        return found
    path = Path(settings.gold)
    if not path.is_file():
        raise RecipeError([f"evaluate.gold: {path} does not exist; give the file of {{id, answer}} lines"])
    return [Input("gold", str(path), sha256_file(path)), *found]


def main(settings: Settings, shared: Shared, upstream: Upstream, out: Path) -> Json:
    """Returns the facts of the report: its gate, headline, and each candidate in brief."""
    task = judges.judged_task(shared.task(), settings.judge)
    manifests = {noun: read_manifest(upstream[noun], noun, verify=False) for noun in NEEDS}
    refuse_another_prompt(manifests["dataset"], Contract.read(upstream["artifact"]))
    gold = Path(settings.gold) if settings.gold else None
    rows = read_held_out(upstream["dataset"], gold, task, max_rows=settings.max_rows, seed=settings.seed)
    names = expand(settings.candidates, manifests["artifact"])
    rule = rule_of(settings, names)
    judges.refuse_unready(settings.judge, task.kind, names)
    candidates = build(names, rows.examples, shared, upstream, settings.parallel)
    return evaluate(settings, shared, upstream, out, rows=rows, rule=rule, candidates=candidates, manifests=manifests)


def rule_of(settings: Settings, names: Sequence[str]) -> GateRule:
    """The gate as the recipe has it; raises PotstillError when it names what is not evaluated."""
    judged(settings.gate.baseline, names)
    found = {**settings.gate.model_dump(), "candidate": judged(settings.gate.candidate, names), "alpha": settings.alpha}
    return GateRule(**found)


def forecast(settings: Settings, shared: Shared, upstream: Upstream) -> Json:
    """What the held-out rows are worth, before anything is trained or answered: power, rows needed, both in words.

    Needs the dataset; with the adapter, its validation score says how often student and teacher may differ.
    """
    rows = read_held_out(upstream["dataset"], None, shared.task(), max_rows=settings.max_rows, seed=settings.seed)
    adapter = read_manifest(upstream["adapter"], "adapter", verify=False) if "adapter" in upstream else None
    found = expected(
        rows.clusters, settings.margin, settings.alpha, PowerRule(settings.plan.power, settings.plan.least_power),
        validation_agreement(adapter) if adapter else None, settings.plan.differing,
    )  # fmt: skip
    return {**found, "words": in_words(found, settings.margin)}


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
    """Write the plan, gather every candidate's answers, judge them, write the report."""
    task, contract = judges.judged_task(shared.task(), settings.judge), Contract.read(upstream["artifact"])
    if rule.choose is not None:
        rule = ordered(rule, candidates)
    plan = make_plan(settings, rule, [each.name for each in candidates], rows, task, manifests["adapter"])
    write_plan(out, plan)
    say(in_words(plan["power"], settings.margin))
    changes: list[Change] = []
    answers = {}
    for each in candidates:
        asked: dict[str, Any] = {
            "task": task, "max_tokens": contract.max_tokens, "stop": contract.stop,
            "dataset_digest": manifests["dataset"].digest, "cache": shared.cache_dir,
        }  # fmt: skip
        if each.open is not None:
            changes += note_plan(each.name, answers_path(each, **asked), plan)
        answers[each.name] = answers_of(each, rows.examples, **asked)
    plan |= {"changed_after_answers": after_answers(changes)}
    for name in rule.order or (rule.candidate,):
        refuse_broken_engine(name, answers[name])
    predictions: Predictions = {name: predictions_of(name, found, rows, task) for name, found in answers.items()}
    predictions, outcome = judges.judge_predictions(
        settings.judge, candidate=rule.candidate, baseline=rule.baseline, rows=rows, predictions=predictions,
        shared=shared, out=out, how=rules_of(settings, rows).how, others=rule.order,
    )  # fmt: skip
    report = assemble(settings, shared, rows, rule, candidates, answers, predictions, manifests, plan, outcome)
    report["signature"] = refuse_untrusted(upstream["artifact"], None)
    write_atomically(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode())
    write_predictions(out / "predictions.parquet", predictions, rows, task)
    write_html(out / "report.html", report, rows, predictions, task)
    write_markdown(out / "report.md", report, rows, predictions, task)
    say(report["headline"]["title"])
    return {
        "gate": report["gate"],
        "headline": report["headline"]["title"],
        "rows": report["rows"],
        "plan": {key: plan[key] for key in ("digest", "margin", "alpha", "changed_after_answers")},
        "candidates": {name: brief(entry) for name, entry in report["candidates"].items()},
    }


def ordered(rule: GateRule, candidates: Sequence[Candidate]) -> GateRule:
    """The rule with the files that `choose` goes through, fixed before any answer is read."""
    order = largest_first({each.name: each.size_bytes for each in candidates})
    return replace(rule, order=order, candidate=order[0])


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
    power = PowerRule(settings.plan.power, settings.plan.least_power)
    return Rules(settings.margin, "quality" if rows.source == "gold" or settings.judge else "agreement", how, power)


def make_plan(
    settings: Settings, rule: GateRule, names: Sequence[str], rows: HeldOut, task: Task, adapter: Manifest
) -> Json:
    """What is fixed before any answer is read: a margin chosen after seeing the result is no margin."""
    rules = rules_of(settings, rows)
    assert rules.power is not None
    terms: Json = {
        "basis": rules.basis,
        "metric": task.metrics[0].name,
        "margin": settings.margin,
        "alpha": settings.alpha,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "candidates": list(names),
        "slices": settings.slices,
    }
    return plan_of(terms, rule, rows, rules.power, validation_agreement(adapter), settings.plan.differing)


def assemble(
    settings: Settings,
    shared: Shared,
    rows: HeldOut,
    rule: GateRule,
    candidates: Sequence[Candidate],
    answers: dict[str, list[Answer]],
    predictions: Predictions,
    manifests: dict[Noun, Manifest],
    plan: Json,
    outcome: judges.Outcome | None = None,
) -> Json:
    """The whole of report.json."""
    task, rules = judges.judged_task(shared.task(), settings.judge), rules_of(settings, rows)
    prices = PriceList(**settings.prices.model_dump())
    entries: dict[str, Json] = {}
    for each in candidates:
        found = predictions[each.name]
        rate = correct_rate(found) if rows.source == "gold" else None
        cost = cost_of(answers[each.name], prices, rate, recorded=each.open is None)
        entries[each.name] = candidate_entry(each.name, found, task, rules.how)
        entries[each.name] |= {"cost": cost.to_json(), **facts_of(each)}
    comparisons = comparisons_of(predictions, task, rules, rule.baseline)
    if find(comparisons, rule.candidate, rule.baseline) is None:
        extra = compare(rule.candidate, rule.baseline, predictions, task, rules, judged=True)
        comparisons = [extra, *comparisons] if extra else comparisons

    def slices(name: str) -> list[Json]:
        return slices_of(
            name, rule.baseline, predictions, rows, task, rules, settings.slices, rule.max_slice_loss
        )  # fmt: skip

    comparisons = judges.by_people(outcome, comparisons, entries, settings.margin, rules.how, rules.power)
    gate, found_slices = judge_all(rule, comparisons, entries, rows.source, slices, plan["changed_after_answers"])
    gate = judges.explained(gate, outcome)
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
        "details": details_of(predictions, rows, shared.task(), rules.how, outcome.details if outcome else None),
        "slices": list(found_slices),
        "plan": plan,
        "confusions": {
            name: confusions_of(name, predictions[name], rows, task)
            for name in dict.fromkeys((gate["candidate"], rule.baseline))
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
