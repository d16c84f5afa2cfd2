"""`potstill check`: what can be known of a recipe before compute is spent; with --probe, three real steps as well."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.commands.recipes import read, refuse_at_odds, sections
from potstill.errors import PotstillError, RecipeError
from potstill.manifest import Manifest, read_manifest
from potstill.pipeline import plan_stage
from potstill.recipe import Recipe
from potstill.records import Json
from potstill.stage import Noun, Upstream
from potstill.sweeping.spaces import refuse_faulty

LEARNT, PLAIN = "\x1b[1;32m", "\x1b[0m"
MIB = 2**20


def check(arguments: argparse.Namespace) -> int:
    """Everything that can be known of a recipe without computing: exit code 2 with every fault found."""
    recipe, modules = read(arguments.recipe, arguments.overrides)
    refuse_faulty(recipe, sections(modules))
    refuse_at_odds(recipe)
    faults: list[str] = []
    result: Json = {"recipe": str(recipe.path), "settings": origins(recipe), "inputs": [], "stages": []}
    made: dict[Noun, Manifest | None] = {}
    for section, module in modules.items():
        try:
            plan = plan_stage(recipe, section, module, made)
            made[plan.noun] = read_manifest(plan.folder, plan.noun) if plan.done else None
            result["stages"].append({"stage": section, "up_to_date": plan.done, "why": plan.why})
            result["inputs"] += [
                {"stage": section, "role": i.role, "path": i.path, "digest": i.digest} for i in plan.inputs
            ]
        except RecipeError as fault:
            faults += fault.faults
            made[module.NOUN] = None
        except (PotstillError, OSError) as fault:
            faults.append(f"{section}: {fault}")
            made[module.NOUN] = None
    if faults:
        raise RecipeError([f"{recipe.path}: {each}" for each in faults])
    result["training"] = training_ahead(recipe, modules["train"], made.get("dataset"), probe=arguments.probe)
    result["evaluation"] = evaluation_ahead(recipe, modules["evaluate"], made)
    print(json.dumps(result) if arguments.json else _text(result))
    return 0


def training_ahead(recipe: Recipe, module: Any, dataset: Manifest | None, *, probe: bool = False) -> Json:
    """What training would see and need. Rows and one example stand in it once there is a dataset to read.

    With `probe`, three real steps are run in a process of their own; raises PotstillError without a dataset.
    """
    settings, shared = recipe.sections["train"], recipe.shared
    if dataset is None or not importlib.util.find_spec("transformers"):
        if probe:
            raise PotstillError("--probe runs real rows: `potstill distill` first (and install potstill[train])")
        return {"rows": None, "example": None, "forecast": module.forecast(settings, shared), "probe": None}
    upstream: Upstream = {"dataset": shared.work_dir / f"dataset-{dataset.key}"}
    ahead: Json = module.preview(settings, shared, upstream)
    ahead["rows_dropped_before"] = dict(dataset.facts.get("rejections", {}))
    ahead["probe"] = module.probe(settings, shared, upstream, ahead["forecast"]["tokens"]) if probe else None
    return ahead


def evaluation_ahead(recipe: Recipe, module: Any, made: Mapping[Noun, Manifest | None]) -> Json | None:
    """Power and rows needed of the held-out rows; None without a dataset to count them in."""
    upstream = {
        noun: recipe.shared.work_dir / f"{noun}-{manifest.key}"
        for noun, manifest in made.items()
        if manifest is not None and noun in ("dataset", "adapter")
    }
    if "dataset" not in upstream:
        return None
    found: Json = module.forecast(recipe.sections["evaluate"], recipe.shared, upstream)
    return found


def origins(recipe: Recipe) -> Json:
    """Every setting with where its value comes from: recipe, command line, or default."""
    out: Json = {}
    overridden = {each.partition("=")[0] for each in recipe.overrides}
    for section, settings in recipe.sections.items():
        # Fields left out of a dump do not name a folder (a price, a card to plan for); they are settings all the same.
        apart = {key: getattr(settings, key) for key, field in type(settings).model_fields.items() if field.exclude}
        for key, value in (settings.model_dump(mode="json") | apart).items():
            name = f"{section}.{key}"
            origin = "recipe" if key in recipe.passed[section] else "default"
            if any(each == name or each.startswith(f"{name}.") for each in overridden):
                origin = "command line"
            out[name] = {"value": value, "origin": origin}
    return out


def _text(result: Json) -> str:
    lines = ["settings:"]
    lines += [
        f"  {name} = {json.dumps(each['value'])}  ({each['origin']})" for name, each in result["settings"].items()
    ]
    lines.append("stages:")
    lines += [
        f"  {e['stage']}: {'up to date' if e['up_to_date'] else 'would run'}, {e['why']}" for e in result["stages"]
    ]
    lines.append("inputs:")
    lines += [f"  {e['stage']}: {e['role']} {e['path']} ({e['digest'][:12]})" for e in result["inputs"]]
    ahead = result["evaluation"]
    judging = f"evaluation: {ahead['words'] if ahead else '`potstill distill` first shows what its rows are worth'}"
    return "\n".join([*lines, *training_text(result["training"], colour=wants_colour()), judging])


def training_text(ahead: Json, *, colour: bool) -> list[str]:
    """What training would see and need, for a terminal."""
    lines: list[str] = []
    if ahead["rows"] is not None:
        lines.append(
            f"training: {ahead['rows']:,} rows, {ahead['tokens_an_epoch']:,} tokens an epoch, "
            f"{ahead['supervised_tokens_an_epoch']:,} of them learnt"
        )
        lines += _dropped(ahead)
        lines.append(f"one row ({ahead['example']['id']}), as rendered; {legend(colour)} is learnt:")
        lines += [f"  {line}" for line in masked(ahead["example"]["spans"], colour=colour).splitlines()]
    else:
        lines.append("training: `potstill distill` first shows rows, tokens and one row with its loss mask")
    lines += _needs(ahead["forecast"])
    if ahead["probe"]:
        lines += _probed(ahead["probe"])
    return lines


def _dropped(ahead: Json) -> list[str]:
    """No row is ever cut short: what is too long for the window is left out whole."""
    long = ahead["rows_too_long"]
    shown = f" (longest: {', '.join(long[:3])}{', ...' if len(long) > 3 else ''})" if long else ""
    lines = [f"  0 rows truncated, {len(long):,} dropped as longer than the window{shown}"]
    return lines + [f"  {count:,} dropped by distill: {why}" for why, count in ahead["rows_dropped_before"].items()]


def legend(colour: bool) -> str:
    return f"{LEARNT}this{PLAIN}" if colour else "[[this]]"


def masked(spans: Sequence[Json], *, colour: bool) -> str:
    """The rendered row with what is learnt in colour, or between [[ ]] where there is none."""
    before, after = (LEARNT, PLAIN) if colour else ("[[", "]]")
    out = []
    for span in spans:
        # Line by line, so that indenting or paging does not carry the colour into the margin.
        lines = [f"{before}{line}{after}" if span["learnt"] and line else line for line in span["text"].split("\n")]
        out.append("\n".join(lines))
    return "".join(out)


def wants_colour() -> bool:
    """A terminal that shows it, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _needs(forecast: Json) -> list[str]:
    parts = forecast["memory"]
    known = "the text models of the Llama, Qwen2, Qwen3 and Gemma 3 families"
    lines = [f"export: GGUF takes {known} alone; training works, export will refuse"]
    lines = lines if forecast["exports"] is False else []
    lines += [f"licence of {forecast['base_model']}: {forecast['licence']}"] if forecast["licence"] else []
    if parts is None:
        why = forecast.get("why_no_memory", "the base is neither on this machine nor among the known ones")
        lines.append(f"memory: not estimated: {why}")
        if "why_no_memory" in forecast:
            lines.append("training: refused at its start where packing changes the logits (an unknown architecture)")
        return lines
    where = "one card" if forecast["choice"] else "the process"
    phase = " in the second phase (train.then)" if forecast.get("phase") == "then" else ""
    lines.append(f"memory of {where}{phase}, estimated:")
    named = sorted(((size, name) for name, size in parts.items() if name != "total" and size), reverse=True)
    lines += [f"  {name:<12} {size / MIB:>9,.0f} MiB" for size, name in [*named, (parts["total"], "total")]]
    return lines + ([f"chosen: {forecast['choice']['text']}"] if forecast["choice"] else [])


def _probed(probe: Json) -> list[str]:
    lines = [
        f"probe of {probe['steps']} steps: {probe['tokens_per_second']:,.0f} tokens/s, "
        f"peak {probe['peak_bytes'] / MIB:,.0f} MiB; {_span(probe['hours'])} for {probe['tokens']:,} tokens"
    ]
    if probe["usd"] is not None:
        lines[0] += f", ${probe['usd']:,.2f}"
    return lines


def _span(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
