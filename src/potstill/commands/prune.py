"""`potstill prune`: what no alias, lineage, served file or newest folder needs is deleted; `--dry-run` only says so."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.commands.registry import who
from potstill.errors import PotstillError, RecipeError
from potstill.pipeline import locked
from potstill.progress import say
from potstill.records import Json
from potstill.retention import Item, delete, held_by, plan_answers, plan_folders, plan_remains, recipe_folders
from potstill.tracking import Tracking, default_uri, open_tracking, without_password

if TYPE_CHECKING:
    from potstill.tracking_prune import Registered


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that could go, with the registry that it was planned with (None: there is none)."""

    items: tuple[Item, ...]
    tracking: Tracking | None
    registered: Registered | None


def prune_command(arguments: argparse.Namespace) -> int:
    """Delete what is not needed, or say what that would be."""
    work_dir = Path(arguments.work_dir).resolve()
    if arguments.keep < 1:
        raise RecipeError([f"--keep: found {arguments.keep}, expected at least 1: the newest folders are needed"])
    if not recipe_folders(work_dir):
        raise RecipeError([f"{work_dir}: holds no stage folders, expected a working folder; give --work-dir"])
    if arguments.dry_run:
        return _tell(arguments, plan_all(work_dir, arguments.keep, arguments.tracking_uri).items)
    with all_locked(work_dir):
        plan = plan_all(work_dir, arguments.keep, arguments.tracking_uri)
        carry_out(plan, by=who(arguments))
    return _tell(arguments, plan.items)


def plan_all(work_dir: Path, keep: int, tracking_uri: str | None) -> Plan:
    """Every stage folder, file of cached answers and version of the working folder with whether it stays."""
    tracking, registered = _registry(work_dir, keep, tracking_uri)

    def reason(version: Json) -> str | None:
        where = str(version.get("tracking_uri"))
        if tracking is None or where != without_password(tracking.uri):
            return f"registered at {where}, which was not asked; give --tracking-uri"
        assert registered is not None
        return registered.reason(str(version.get("model")), str(version.get("version")))

    needed = registered.by_digest() if registered is not None else {}
    folders = plan_folders(work_dir, keep=keep, by_digest=needed, versions=reason)
    reports = [Path(each.where) for each in folders if each.stays and Path(each.where).name.startswith("report-")]
    items = [*folders, *plan_answers(work_dir, reports), *plan_remains(work_dir)]
    if tracking is not None and registered is not None:
        from potstill.tracking_prune import plan_versions

        items += plan_versions(tracking, registered)
    return Plan(tuple(items), tracking, registered)


def _registry(work_dir: Path, keep: int, uri: str | None) -> tuple[Tracking | None, Registered | None]:
    """The versions that this working folder registered at the address; nothing where it registered none."""
    address = uri or default_uri(work_dir)
    models = set()
    for path in work_dir.glob("*/version-*/version.json"):
        version = json.loads(path.read_text())
        if version.get("tracking_uri") == without_password(address):
            models.add(str(version["model"]))
    path = Path(address.removeprefix("sqlite:///"))
    if not models or (address.startswith("sqlite:") and not path.is_file()):  # lost: nothing says what aliases need
        return None, None
    from potstill.tracking_prune import registered

    tracking = open_tracking(address)
    return tracking, registered(tracking, models, keep)


@contextmanager
def all_locked(work_dir: Path) -> Iterator[None]:
    """No recipe of the working folder, and no sweep, at work meanwhile; raises PotstillError when one is."""
    with ExitStack() as held:
        for recipe in recipe_folders(work_dir):
            held.enter_context(locked(recipe))
            for sweep in sorted(path.parent for path in recipe.glob("sweeps/*/sweep.json")):
                held.enter_context(locked(sweep))
        yield


def carry_out(plan: Plan, *, by: str) -> None:
    """Delete what does not stay: versions first, since a promotion meanwhile stops everything."""
    if plan.tracking is not None and plan.registered is not None:
        from potstill.tracking_prune import prune_versions

        prune_versions(plan.tracking, plan.registered, plan.items, by=by)
    for item in plan.items:
        if item.stays or item.kind == "version":
            continue
        path = Path(item.where)
        if (process := held_by(path)) is not None:
            raise PotstillError(f"{path}: process {process} has opened it since it was looked at; prune again later")
        delete(path)


def _tell(arguments: argparse.Namespace, items: Sequence[Item]) -> int:
    going = [each for each in items if not each.stays]
    freed = sum(each.size_bytes for each in going)
    if arguments.json:
        found = {"dry_run": arguments.dry_run, "freed_bytes": freed, "items": [asdict(each) for each in items]}
        print(json.dumps(found, ensure_ascii=False))
        return 0
    for each in items:
        print(each.line())
    say(f"{len(going)} of {len(items)} {'would go' if arguments.dry_run else 'deleted'}, {freed / 1e6:.1f} MB")
    return 0
