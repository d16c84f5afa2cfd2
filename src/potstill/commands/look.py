"""Commands that look and change nothing: check, status, lineage, doctor, schema."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
from pathlib import Path
from typing import Any

from potstill.commands.recipes import read, sections
from potstill.errors import DamagedInput, PotstillError, RecipeError
from potstill.manifest import MANIFEST, Manifest, library_versions, read_manifest, write_atomically
from potstill.pipeline import plan_stage
from potstill.recipe import Recipe, recipe_json_schema
from potstill.records import Json
from potstill.stage import Noun
from potstill.stage_finder import stage_modules
from potstill.sweeping.spaces import refuse_faulty

BYTES_A_WEIGHT = {"bf16": 2.0, "nf4": 0.56}


def check(arguments: argparse.Namespace) -> int:
    """Everything that can be known of a recipe without computing: exit code 2 with every fault found."""
    recipe, modules = read(arguments.recipe, arguments.overrides)
    refuse_faulty(recipe, sections(modules))
    faults: list[str] = []
    result: Json = {"recipe": str(recipe.path), "settings": _origins(recipe), "inputs": [], "stages": []}
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
    result["memory"] = _memory(recipe)
    dataset = made.get("dataset")
    if dataset is not None and importlib.util.find_spec("transformers"):
        folder = recipe.shared.work_dir / f"dataset-{dataset.key}"
        result["training"] = modules["train"].preview(recipe.sections["train"], recipe.shared, {"dataset": folder})
    print(json.dumps(result) if arguments.json else _check_text(result))
    return 0


def _origins(recipe: Recipe) -> Json:
    """Every setting with where its value comes from: recipe, command line, or default."""
    out: Json = {}
    overridden = {each.partition("=")[0] for each in recipe.overrides}
    for section, settings in recipe.sections.items():
        for key, value in settings.model_dump(mode="json").items():
            name = f"{section}.{key}"
            origin = "recipe" if key in recipe.passed[section] else "default"
            if any(each == name or each.startswith(f"{name}.") for each in overridden):
                origin = "command line"
            out[name] = {"value": value, "origin": origin}
    return out


def _memory(recipe: Recipe) -> Json | None:
    """Bytes of the base's weights in each form, from the size of its file (None for a base not on this machine)."""
    from potstill.models import locate

    path = locate(recipe.shared.base_model)
    if path is None:
        return None
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    size = sum(each.stat().st_size for each in files)
    weights = size / 0.625 if path.suffix == ".gguf" and "Q4" in path.name else size / 2
    return {f"weights_{form}_bytes": round(weights * each) for form, each in BYTES_A_WEIGHT.items()}


def _check_text(result: Json) -> str:
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
    if result["memory"]:
        lines.append("memory: " + ", ".join(f"{k} {v / 2**20:,.0f} MiB" for k, v in result["memory"].items()))
    if training := result.get("training"):
        lines.append(
            f"training: {training['rows']:,} rows, {training['tokens_an_epoch']:,} tokens an epoch, "
            f"{training['supervised_tokens_an_epoch']:,} of them learnt, {len(training['rows_too_long'])} rows too long"
        )
        lines.append(f"one row ({training['example']['id']}), as rendered, with its loss mask:")
        lines += [
            f"  {'learnt    ' if each['learnt'] else 'not learnt'} {each['text']!r}"
            for each in training["example"]["spans"]
        ]
    else:
        lines.append("training: `potstill distill` first shows rows, tokens and one row with its loss mask")
    return "\n".join(lines)


def status(arguments: argparse.Namespace) -> int:
    """Finished folders of a recipe and which stages would run."""
    recipe, modules = read(arguments.recipe, arguments.overrides)
    folders = []
    for path in sorted(recipe.shared.work_dir.glob(f"*/{MANIFEST}"), key=lambda each: each.stat().st_mtime):
        manifest = read_manifest(path.parent, verify=False)
        folders.append({"folder": path.parent.name, "created": manifest.created, "digest": manifest.digest})
    made: dict[Noun, Manifest | None] = {}
    stages: list[Json] = []
    for section, module in modules.items():
        plan = plan_stage(recipe, section, module, made)
        made[plan.noun] = read_manifest(plan.folder, plan.noun, verify=False) if plan.done else None
        stages.append({"stage": section, "up_to_date": plan.done, "why": plan.why, "folder": plan.folder.name})
    if arguments.json:
        print(json.dumps({"folders": folders, "stages": stages}))
    else:
        for each in folders:
            print(f"{each['created']}  {each['folder']}  {each['digest'][:12]}")
        for each in stages:
            print(f"{each['stage']}: {'up to date' if each['up_to_date'] else 'would run'}, {each['why']}")
    return 0


def lineage_command(arguments: argparse.Namespace) -> int:
    """The way back to the traffic log's hash, and forward to what was made."""
    from potstill.lineage import lineage

    work = Path(arguments.work_dir).resolve()
    uri = arguments.tracking_uri
    if uri is None and arguments.thing.startswith("models:/"):
        from potstill.tracking import default_uri

        uri = default_uri(work)
    node = lineage(arguments.thing, work, uri)
    print(json.dumps(node.to_json()) if arguments.json else node.to_text())
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """What this machine has, and what Potstill can do with it."""
    found: Json = {"versions": library_versions(), "cores": os.cpu_count(), "machine": platform.platform()}
    needs = {
        "distill": ("pyarrow", "rensa"),
        "train": ("torch", "transformers", "peft", "trl", "datasets"),
        "nf4": ("bitsandbytes",),
        "export": ("torch", "gguf"),
        "serve": ("starlette", "uvicorn", "xllamacpp"),
        "track": ("mlflow",),
    }
    found["can"] = {
        what: [name for name in names if importlib.util.find_spec(name) is None] for what, names in needs.items()
    }
    found["gpu"] = _gpu()
    if arguments.json:
        print(json.dumps(found))
    else:
        print(f"{found['machine']}, {found['cores']} cores, GPU: {found['gpu'] or 'none'}")
        print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
        for what, missing in found["can"].items():
            print(f"{what}: {'yes' if not missing else 'no, missing ' + ', '.join(missing)}")
    return 0


def _gpu() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None


def schema(arguments: argparse.Namespace) -> int:
    """JSON Schema of a recipe."""
    text = schema_text(stage_modules())
    if arguments.out:
        out = Path(arguments.out)
        if not out.parent.is_dir():
            raise DamagedInput(f"{out.parent}: no such folder")
        write_atomically(out, text.encode())
    else:
        print(text, end="")
    return 0


def schema_text(modules: dict[str, Any]) -> str:
    """The schema as it is committed in configs/recipe.schema.json."""
    return json.dumps(recipe_json_schema(sections(modules)), indent=1) + "\n"
