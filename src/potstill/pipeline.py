"""Runs the stages of a recipe that are not up to date, each into its own folder, and says why for each.

A folder is named by its settings and the content of its inputs, and complete once its manifest exists. Export comes
before evaluate, because the gate judges the file that ships.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill import __version__
from potstill.addresses import without_password, without_passwords
from potstill.errors import ManifestMismatch, PotstillError
from potstill.manifest import MANIFEST, Input, Manifest, read_manifest, stage_key, write_manifest
from potstill.progress import say
from potstill.recipe import Recipe
from potstill.records import Json
from potstill.safe_names import safe_name
from potstill.signing import check_seal, lacks_signature, seal
from potstill.stage import Noun

RESUMABLE = ("adapter",)  # an unfinished folder of these is continued, any other begun anew


@dataclass(frozen=True, slots=True)
class Plan:
    """What one stage would do: its folder, whether that is complete, and why it would or would not run."""

    section: str
    noun: Noun
    folder: Path
    key: str
    done: bool
    why: str
    inputs: tuple[Input, ...]


def plan_stage(recipe: Recipe, section: str, module: Any, upstream: Mapping[Noun, Manifest | None]) -> Plan:
    """Where a stage's folder stands, and what has changed since the last one. Reads inputs, computes nothing.

    With an upstream that is not made yet (None) the stage's own folder cannot be named: it will run.
    """
    inputs = [*module.inputs(recipe.sections[section], recipe.shared)]
    if any(upstream.get(need) is None for need in module.NEEDS):
        missing = ", ".join(need for need in module.NEEDS if upstream.get(need) is None)
        return Plan(
            section, module.NOUN, recipe.shared.work_dir, "", False, f"a new {missing} comes first", tuple(inputs)
        )
    for need in module.NEEDS:
        manifest = upstream[need]
        assert manifest is not None
        inputs.append(Input(need, str(_folder(recipe, need, manifest.key)), manifest.digest))
    key = stage_key(section, _keyed(recipe, section), inputs)
    folder = _folder(recipe, module.NOUN, key)
    if (folder / MANIFEST).is_file():
        if not lacks_signature(recipe.sections[section], folder):
            return Plan(section, module.NOUN, folder, key, True, "unchanged", tuple(inputs))
        why = f"not signed, which {section}.sign asks for"
        return Plan(section, module.NOUN, folder, key, False, why, tuple(inputs))
    why = (
        "unfinished, going on"
        if folder.is_dir() and module.NOUN in RESUMABLE
        else _why(recipe, section, folder, inputs)
    )
    return Plan(section, module.NOUN, folder, key, False, why, tuple(inputs))


def _folder(recipe: Recipe, noun: Noun, key: str) -> Path:
    return recipe.shared.work_dir / safe_name(f"{noun}-{key}", f"key in the {noun}'s manifest")


def _keyed(recipe: Recipe, section: str) -> Json:
    """What a stage's result depends on besides its inputs: its settings, the task, the name, our version."""
    shared = recipe.shared
    return {
        "settings": recipe.sections[section].model_dump(mode="json"),
        "task": shared.task_definition,
        "base_model": shared.base_model,
        "name": shared.name,
        "potstill": __version__,
    }


def _why(recipe: Recipe, section: str, folder: Path, inputs: Sequence[Input]) -> str:
    """What differs from the newest finished folder of the same kind."""
    noun = folder.name.rpartition("-")[0]
    finished = sorted(recipe.shared.work_dir.glob(f"{noun}-*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    if not finished:
        return f"no {noun} yet"
    before = read_manifest(finished[-1].parent, verify=False)
    then, now = _flat(before.settings_used), _flat(_keyed(recipe, section))
    changes = [
        f"{key.removeprefix('settings.')} {then.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
    old = {(each.role, each.digest) for each in before.inputs}
    changes += [
        f"{each.role} {Path(each.path).name} is new or changed"
        for each in inputs
        if (each.role, each.digest) not in old
    ]
    return ", ".join(changes)[:400] or "an input is gone"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in _flat(each, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


def run_pipeline(recipe: Recipe, modules: Mapping[str, Any], upto: str, *, track: bool = True) -> Json:
    """Bring every stage up to `upto` up to date; returns folders, digests, seconds and the gate.

    Raises what a stage raises; an unfinished folder is left for the next run.
    """
    sections = list(modules)[: list(modules).index(upto) + 1]
    made: dict[Noun, Manifest | None] = {}
    outcome: Json = {}
    shared = recipe.shared
    shared.work_dir.mkdir(parents=True, exist_ok=True)
    say(f"recipe {recipe.path} -> {shared.work_dir}; MLflow: {without_password(shared.tracking_uri)}")
    with locked(shared.work_dir):
        for section in sections:
            module = modules[section]
            start = time.monotonic()
            plan = plan_stage(recipe, section, module, made)
            say(f"{section}: skipped, {plan.why} ({plan.folder.name})" if plan.done else f"{section}: {plan.why}")
            done = read_manifest(plan.folder, plan.noun) if plan.done else None
            if done is not None:
                check_seal(recipe.sections[section], plan.folder)
            manifest = done or run_stage(recipe, plan, module, made, track)
            made[plan.noun] = manifest
            if not plan.done:
                say(f"{section}: done in {time.monotonic() - start:.0f} s -> {plan.folder.name}")
            if track and section != "register" and not plan.done:
                _record(recipe, plan.folder)
            outcome[plan.noun] = {
                "path": str(plan.folder),
                "digest": manifest.digest,
                "skipped": plan.done,
                "why": plan.why,
                "seconds": manifest.facts.get("wall_s"),
            }
    report = made.get("report")
    outcome["gate"] = report.facts["gate"] if report else None
    if (version := made.get("version")) is not None:
        outcome["version"] |= {key: version.facts.get(key) for key in ("model", "version", "uri")}
    return outcome


def run_stage(
    recipe: Recipe, plan: Plan, module: Any, made: Mapping[Noun, Manifest | None], track: bool = False
) -> Manifest:
    """Run one stage, as planned, into its folder and seal it with the manifest. Raises what the stage raises.

    With `track`, a stage that can be watched while it works shows itself in MLflow.
    """
    if plan.folder.is_dir() and plan.noun not in RESUMABLE:
        shutil.rmtree(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    upstream = {need: _folder(recipe, need, _of(made, need).key) for need in module.NEEDS}
    start = time.monotonic()
    facts = module.main(recipe.sections[plan.section], replace(recipe.shared, tracked=track), upstream, plan.folder)
    manifest = write_manifest(
        plan.folder,
        plan.noun,
        settings_passed=recipe.passed[plan.section] | {"overrides": [without_passwords(x) for x in recipe.overrides]},
        settings_used=_keyed(recipe, plan.section),
        inputs=plan.inputs,
        facts=facts | {"wall_s": round(time.monotonic() - start, 1)},
        key=plan.key,
        command=without_passwords(" ".join(["potstill", *sys.argv[1:]])),
    )
    seal(recipe.sections[plan.section], plan.folder)
    return manifest


def _of(made: Mapping[Noun, Manifest | None], noun: Noun) -> Manifest:
    manifest = made[noun]
    if manifest is None:
        raise PotstillError(f"{noun} is not made yet")
    return manifest


def _record(recipe: Recipe, folder: Path) -> None:
    """A run in MLflow for this stage."""
    from potstill.tracking import open_tracking
    from potstill.tracking_stages import record_folder

    record_folder(open_tracking(recipe.shared.tracking_uri), recipe.shared.name, folder)


@contextmanager
def locked(work_dir: Path) -> Iterator[None]:
    """One run a recipe at a time on this machine; a second one is refused, not queued."""
    with (work_dir / ".lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise PotstillError(f"another potstill is at work in {work_dir}; wait for it or stop it") from fault
        yield


def newest(work_dir: Path, noun: Noun) -> Path:
    """The finished folder of a kind that was made last; raises ManifestMismatch when there is none."""
    finished = sorted(work_dir.glob(f"{noun}-*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise ManifestMismatch(f"{work_dir}: no finished {noun}; run `potstill run` first")
    return finished[-1].parent
