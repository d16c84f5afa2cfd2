"""What of the registry may go: the weights of versions that no alias needs. Version, lineage and report stay.

Giving up files is an entry in the model's journal like any move, so that it cannot cross a promotion of the same
version: one of the two is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from potstill.errors import RecipeError
from potstill.manifest import MANIFEST
from potstill.progress import say
from potstill.retention import Item, held_by, open_paths, size_of
from potstill.tracking import Tracking, client
from potstill.tracking_journal import patiently
from potstill.tracking_moves import Standing, give_up, standing
from potstill.tracking_versions import CARRIED, PRUNED, aliases, find_version, kept_download

GIVEN_UP = ("adapter", "artifact")
LEFT = (MANIFEST, "contract.json", "verification.json")  # of these folders: what lineage and a reviewer read


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version as it could be pruned: its files given up already or not, and why it stays (empty: it need not)."""

    model: str
    number: str
    where: str
    tags: Mapping[str, str]
    needed: str
    pruned: bool


@dataclass(slots=True)
class Registered:
    """All versions of the models of a working folder, with how each model stood when they were read."""

    versions: list[StoredVersion] = field(default_factory=list)
    stood: dict[str, Standing] = field(default_factory=dict)

    def by_digest(self) -> dict[str, str]:
        """Why a stage folder's digest is needed: the version under an alias that was made from it."""
        found: dict[str, str] = {}
        for each in self.versions:
            for noun in ("dataset", *CARRIED) if each.needed else ():
                if digest := each.tags.get(noun):
                    found.setdefault(digest, f"{each.model} {each.number}, {each.needed}, was made from it")
        return found

    def reason(self, model: str, number: str) -> str | None:
        """Why a version is needed; None when it is not, or is not known."""
        found = next((each for each in self.versions if (each.model, each.number) == (model, number)), None)
        return f"{model} {number} is {found.needed}" if found is not None and found.needed else None


def registered(tracking: Tracking, models: Iterable[str], keep: int) -> Registered:
    """The versions of these models; needed are those under an alias, the last `keep`, and those in use."""
    found, opened = Registered(), open_paths()
    for model in sorted(set(models)):
        try:
            stood = standing(tracking, model)
            named = aliases(tracking, model)
        except RecipeError:
            continue  # deleted in MLflow since
        found.stood[model] = stood
        api = client(tracking)
        every = patiently(lambda api=api, model=model: list(_versions(api, model)))  # type: ignore[misc]
        newest = sorted((int(each.version) for each in every), reverse=True)[:keep]
        for each in every:
            found.versions.append(_stored(tracking, each, named, int(each.version) in newest, opened))
    return found


def _versions(api: Any, model: str) -> Iterator[Any]:
    token = None
    while True:
        page = api.search_model_versions(f"name = '{model}'", max_results=200, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _stored(
    tracking: Tracking, version: Any, named: Mapping[str, str], newest: bool, opened: Mapping[Path, int]
) -> StoredVersion:
    number = str(version.version)
    tags = {k.removeprefix("potstill."): v for k, v in version.tags.items() if k.startswith("potstill.")}
    where = str(client(tracking).get_model_version_download_uri(version.name, number))
    held = [path for path in (_local(where), kept_download(tracking, version.name, number, where)) if path is not None]
    reasons = [alias for alias, each in sorted(named.items()) if each == number] + ["newest"] * newest
    reasons += [f"open in process {process}" for path in held if (process := held_by(path, opened)) is not None]
    if reasons:  # a page may come without tags of its oldest versions (see tracking_journal)
        tags = dict(find_version(tracking, f"models:/{version.name}/{number}").tags)
    return StoredVersion(version.name, number, where, tags, ", ".join(reasons), PRUNED in tags)


def _local(where: str) -> Path | None:
    return Path(unquote(urlsplit(where).path)) if where.startswith(("file:", "/")) else None


def plan_versions(tracking: Tracking, found: Registered) -> list[Item]:
    """Every version's weights, and every downloaded copy, with whether they stay."""
    items = []
    for each in found.versions:
        size = sum(size for _, size in _weights(each.where))
        if size or not each.pruned:
            why = each.needed or ("was being pruned" if each.pruned else "no alias needs it")
            items.append(Item("version", f"models:/{each.model}/{each.number}", size, bool(each.needed), why))
        copy = kept_download(tracking, each.model, each.number, each.where)
        if not each.needed and copy is not None and copy.is_dir():
            items.append(Item("download", str(copy), size_of(copy), False, f"copy of {each.model} {each.number}"))
    return items


def prune_versions(tracking: Tracking, found: Registered, items: Sequence[Item], *, by: str) -> None:
    """Delete the weights of the versions planned to go. Raises PotstillError when somebody moved champion meanwhile.

    A version is first marked, so that nobody promotes it any more; then the journal says so; then its files go.
    """
    going = {item.where for item in items if item.kind == "version" and not item.stays}
    for model, stood in found.stood.items():
        chosen = [each for each in found.versions if each.model == model and f"models:/{model}/{each.number}" in going]
        if chosen:
            _prune(tracking, model, stood, chosen, by)


def _prune(tracking: Tracking, model: str, stood: Standing, chosen: Sequence[StoredVersion], by: str) -> None:
    api, tag = client(tracking), f"potstill.{PRUNED}"
    fresh = tuple(each.number for each in chosen if not each.pruned)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    for number in fresh:
        api.set_model_version_tag(model, number, tag, f"{when} by {by}")
    try:
        still = set(aliases(tracking, model).values())
        if taken := still & {each.number for each in chosen}:
            raise RecipeError([f"{model}: version {', '.join(taken)} got an alias meanwhile; prune again"])
        if fresh:
            give_up(tracking, model, fresh, stood, by=by, why=f"potstill prune: no alias needs {', '.join(fresh)}")
    except Exception:
        for number in fresh:
            api.delete_model_version_tag(model, number, tag)
        raise
    for each in chosen:
        say(f"MLflow: deleting the weights of {model} {each.number}")
        _delete_weights(each.where)


def _weights(where: str) -> list[tuple[str, int]]:
    """Path and size of each file that a pruned version gives up."""
    repository = _repository(where)
    found: list[tuple[str, int]] = []
    ahead = [each.path for each in repository.list_artifacts() if each.path in GIVEN_UP]
    while ahead:
        for each in repository.list_artifacts(ahead.pop()):
            if each.is_dir:
                ahead.append(each.path)
            elif each.path.partition("/")[2] not in LEFT:
                found.append((each.path, int(each.file_size or 0)))
    return found


def _delete_weights(where: str) -> None:
    repository = _repository(where)
    for path, _ in _weights(where):
        repository.delete_artifacts(path)


def _repository(where: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(where)
