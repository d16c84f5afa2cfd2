"""Commands that look and change nothing: status, doctor, schema (check and lineage have files of their own)."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

from potstill.commands.recipes import read, sections
from potstill.cores import usable_cores
from potstill.errors import DamagedInput
from potstill.forgetting.tombstone import read_tombstone
from potstill.manifest import MANIFEST, Manifest, library_versions, read_manifest, write_atomically
from potstill.pipeline import plan_stage
from potstill.recipe import recipe_json_schema
from potstill.records import Json
from potstill.stage import Noun
from potstill.stage_finder import stage_modules


def status(arguments: argparse.Namespace) -> int:
    """Finished folders of a recipe and which stages would run."""
    recipe, modules = read(arguments.recipe, arguments.overrides)
    folders: list[Json] = []
    for path in sorted(recipe.shared.work_dir.glob(f"*/{MANIFEST}"), key=lambda each: each.stat().st_mtime):
        manifest = read_manifest(path.parent, verify=False)
        folders.append({"folder": path.parent.name, "created": manifest.created, "digest": manifest.digest})
        if (stone := read_tombstone(path.parent)) is not None and stone.again != "nothing":
            folders[-1]["forgotten"] = stone.words
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
            print(f"{each['created']}  {each['folder']}  {each['digest'][:12]}  {each.get('forgotten', '')}".rstrip())
        for each in stages:
            print(f"{each['stage']}: {'up to date' if each['up_to_date'] else 'would run'}, {each['why']}")
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """What this machine has, and what Potstill can do with it."""
    found: Json = {"versions": library_versions(), "cores": usable_cores(), "machine": platform.platform()}
    needs = {
        "distill": ("pyarrow", "rensa"),
        "train": ("torch", "transformers", "peft", "trl", "datasets"),
        "nf4": ("bitsandbytes",),
        "export": ("torch", "gguf"),
        "serve": ("uvicorn", "httptools", "xllamacpp"),
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
