"""`potstill run` and its stages one by one."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from potstill.commands.check import evaluation_ahead, training_ahead, training_text, wants_colour
from potstill.commands.recipes import read
from potstill.errors import GateRefused
from potstill.manifest import Manifest, read_manifest
from potstill.pipeline import plan_stage, run_pipeline
from potstill.progress import say
from potstill.recipe import Recipe
from potstill.records import Json
from potstill.stage import Noun


def run(arguments: argparse.Namespace) -> int:
    """Bring the stages up to the named one up to date. Exit code 3 when all is done but the gate refuses."""
    recipe, modules = read(arguments.recipe, arguments.overrides)
    upto = "register" if arguments.command == "run" else arguments.command
    if arguments.dry_run:
        return _dry_run(arguments, recipe, modules, upto)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":  # started by torchrun
        return int(modules["train"].follow(recipe.sections["train"], recipe.shared))
    outcome = run_pipeline(recipe, modules, upto, track=not arguments.no_track)
    modules["train"].dismiss()
    gate = outcome["gate"]
    if arguments.json:
        print(json.dumps(outcome))
    elif gate is not None:
        print(summary_table(Path(outcome["report"]["path"])))
        print(f"report: {outcome['report']['path']}/report.html")
    if gate is not None and not gate["passed"]:
        for reason in gate["reasons"]:
            say(f"gate: {reason}")
        return GateRefused.exit_code
    return 0


def _dry_run(arguments: argparse.Namespace, recipe: Recipe, modules: Json, upto: str) -> int:
    made: dict[Noun, Manifest | None] = {}
    lines: list[Json] = []
    for section in list(modules)[: list(modules).index(upto) + 1]:
        plan = plan_stage(recipe, section, modules[section], made)
        made[plan.noun] = read_manifest(plan.folder, plan.noun) if plan.done else None
        lines.append({"stage": section, "would_run": not plan.done, "why": plan.why, "folder": str(plan.folder)})
    ahead = None
    if upto == "train" and lines[-1]["would_run"]:
        ahead = lines[-1]["training"] = training_ahead(recipe, modules["train"], made["dataset"])
    judging = None
    if (last := next((each for each in lines if each["stage"] == "evaluate"), None)) is not None and last["would_run"]:
        judging = last["evaluation"] = evaluation_ahead(recipe, modules["evaluate"], made)
    if arguments.json:
        print(json.dumps(lines))
        return 0
    for each in lines:
        print(f"{each['stage']}: {'would run' if each['would_run'] else 'up to date'}, {each['why']}")
    if ahead is not None:
        print("\n".join(training_text(ahead, colour=wants_colour())))
    if judging is not None:
        print(f"evaluation: {judging['words']}")
    return 0


def summary_table(report_folder: Path) -> str:
    """Candidates of a report as a plain table: quality and agreement with intervals, validity, latency."""
    report = json.loads((report_folder / "report.json").read_text())
    rows = [["candidate", "quality", "agreement", "valid", "p50 ms", "p95 ms"]]
    for name, each in report["candidates"].items():
        latency = each.get("latency_ms") or {}
        rows.append(
            [
                name,
                interval(each["quality"]),
                interval(each["agreement"]),
                f"{each['valid_rate']:.1%}" if each.get("valid_rate") is not None else "-",
                _number(latency.get("p50")),
                _number(latency.get("p95")),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    metric = next((e["quality"]["metric"] for e in report["candidates"].values() if e.get("quality")), "")
    verdicts = [
        f"{c['candidate']} against {c['baseline']}: "
        f"{c['difference']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}], {c['verdict']}"
        for c in report["comparisons"]
        if c.get("difference") is not None
    ]
    gate = report["gate"]
    closing = f"gate: {'passed' if gate['passed'] else 'REFUSED'}: " + "; ".join(gate["reasons"])
    return "\n".join([f"quality is {metric}, with 95 % intervals", *lines, *verdicts, closing])


def interval(estimate: Json | None) -> str:
    """`0.912 [0.899, 0.924]`, or a dash."""
    if not estimate or estimate.get("value") is None:
        return "-"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
