"""What of a working folder may go: every stage folder with whether anything needs it, and why.

A folder is needed when it is among the newest of its kind, when a version under an alias was made from it, when a
sweep compares it, when a process has it open, or when something needed was made from it. Cached answers are needed
while a report that stays holds them, or no report has read them yet. Everything else can be made again from what
stays. Datasets of comparisons, sweeps, calibrations, captured traffic, answers paid for (`relabel/`) and converted
bases are left alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from potstill.errors import ManifestMismatch
from potstill.manifest import MANIFEST, Manifest, read_manifest
from potstill.records import Json

NOUNS = ("dataset", "adapter", "artifact", "report", "version")
GOING = ".pruned-"  # a folder on its way out: renamed first, so that none is ever half there under its own name
SAMPLED = 200  # lines of a file of cached answers that are looked for in the reports
ItemKind = Literal["folder", "answers", "remains", "version", "download"]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that could go: where it is, how big, whether it stays, and why (both ways)."""

    kind: ItemKind
    where: str
    size_bytes: int
    stays: bool
    why: str

    def line(self) -> str:
        return f"{'keep' if self.stays else 'delete':<6}  {self.size_bytes / 1e6:>9.1f} MB  {self.where}  ({self.why})"


@dataclass(slots=True)
class _Folder:
    path: Path
    noun: str
    manifest: Manifest | None
    reasons: list[str] = field(default_factory=list)


def recipe_folders(work_dir: Path) -> list[Path]:
    """The folders of recipes: those that hold a stage folder."""
    return sorted({path.parent for path in _stage_folders(work_dir)})


def _stage_folders(work_dir: Path) -> list[Path]:
    pattern = re.compile(rf"({'|'.join(NOUNS)})-[\w-]+")
    return sorted(path for path in work_dir.glob("*/*") if pattern.fullmatch(path.name) and path.is_dir())


def plan_folders(
    work_dir: Path, *, keep: int, by_digest: Mapping[str, str], versions: Callable[[Json], str | None]
) -> list[Item]:
    """Every stage folder under `work_dir` (one a recipe in it) with whether it stays.

    `by_digest` gives the digests that registered versions need, and why; `versions` says of a `version.json` why its
    version is needed (None: it is not).
    """
    folders = [_Folder(path, path.name.partition("-")[0], _manifest(path)) for path in _stage_folders(work_dir)]
    opened = open_paths()
    swept = _swept(work_dir)
    for each in folders:
        if each.manifest is not None and each.manifest.digest in by_digest:
            each.reasons.append(by_digest[each.manifest.digest])
        if (path := each.path / "version.json").is_file() and (why := versions(json.loads(path.read_text()))):
            each.reasons.append(why)
        if (process := _held(each.path, opened)) is not None:
            each.reasons.append(f"open in process {process}")
        if each.path in swept:
            each.reasons.append(f"a trial of sweep {swept[each.path]}")
    for recipe in {each.path.parent for each in folders}:
        for noun in NOUNS:
            _keep_newest([each for each in folders if each.path.parent == recipe and each.noun == noun], noun, keep)
    _keep_origins(folders)
    return [_item(each) for each in folders]


def _manifest(path: Path) -> Manifest | None:
    try:
        return read_manifest(path, verify=False)
    except ManifestMismatch:
        return None


def _made_at(path: Path) -> float:
    return (path / MANIFEST).stat().st_mtime


def _keep_newest(folders: Sequence[_Folder], noun: str, keep: int) -> None:
    """The last `keep` finished ones, and unfinished training that is newer than all of them."""
    finished = sorted((each for each in folders if each.manifest is not None), key=lambda each: _made_at(each.path))
    for each in finished[-keep:]:
        each.reasons.append(f"newest {noun}" if each is finished[-1] else f"among the {keep} newest of {noun}")
    since = _made_at(finished[-1].path) if finished else 0.0
    for each in folders:
        if each.manifest is None and noun == "adapter" and each.path.stat().st_mtime > since:
            each.reasons.append("unfinished training, which the next run goes on with")


def _keep_origins(folders: Sequence[_Folder]) -> None:
    """Whatever a needed folder was made from, back to the dataset."""
    by_digest: dict[str, list[_Folder]] = {}
    for each in folders:
        if each.manifest is not None:
            by_digest.setdefault(each.manifest.digest, []).append(each)
    ahead = [each for each in folders if each.reasons]
    while ahead:
        made = ahead.pop()
        for source in made.manifest.inputs if made.manifest is not None else ():
            same = by_digest.get(source.digest, [])
            named = [each for each in same if str(each.path) == source.path]
            for origin in named or same:  # equal content made twice: the one that was read
                if not origin.reasons:
                    origin.reasons.append(f"{made.path.name} was made from it")
                    ahead.append(origin)


def _item(folder: _Folder) -> Item:
    unneeded = "nothing needs it" if folder.manifest is not None else "unfinished, and begun anew if asked for"
    why = "; ".join(dict.fromkeys(folder.reasons)) or unneeded
    return Item("folder", str(folder.path), size_of(folder.path), bool(folder.reasons), why)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink())


def _swept(work_dir: Path) -> dict[Path, str]:
    """The adapters that sweeps compare, by folder: a sweep asked for again reads every trial's."""
    found = {}
    for path in work_dir.glob("*/sweeps/*/sweep.json"):
        with suppress(ValueError, KeyError, TypeError):
            for trial in json.loads(path.read_text())["trials"]:
                if trial.get("folder"):
                    found[path.parents[2] / str(trial["folder"])] = path.parent.name
    return found


def open_paths() -> dict[Path, int]:
    """Files that processes of this machine have open or mapped, and what their command lines name, with the process.

    Read from /proc, so complete on Linux alone, and for processes of other users only as far as they may be looked at.
    """
    found: dict[Path, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        number = int(process.name)
        if number == os.getpid():
            continue
        with suppress(OSError):
            here = Path(os.readlink(process / "cwd"))
            for word in (process / "cmdline").read_bytes().decode(errors="replace").split("\0"):
                if "/" in word and ":" not in word:
                    found.setdefault((here / word).resolve(), number)
        with suppress(OSError):
            for line in (process / "maps").read_text(errors="replace").splitlines():
                if (at := line.find("/")) >= 0:
                    found.setdefault(Path(line[at:]), number)
        with suppress(OSError):
            for each in (process / "fd").iterdir():
                with suppress(OSError):
                    found.setdefault(Path(os.readlink(each)), number)
    return found


def _held(folder: Path, opened: Mapping[Path, int]) -> int | None:
    """The process that has something in the folder open."""
    folder = folder.resolve()
    return next((number for path, number in opened.items() if path.is_relative_to(folder)), None)


def held_by(folder: Path, opened: Mapping[Path, int] | None = None) -> int | None:
    """The process that has something in the folder open (now, or as `opened` was read); None when none has."""
    return _held(folder, open_paths() if opened is None else opened)


def plan_answers(work_dir: Path, reports: Iterable[Path]) -> list[Item]:
    """The files of cached answers; `reports` are the report folders that stay.

    A file stays when one of these reports holds its answers, or when it is newer than all reports: an evaluation that
    was cut off goes on from it.
    """
    staying = [path for path in reports if (path / "predictions.parquet").is_file()]
    texts = _texts(staying)
    newest = max((_made_at(path) for path in staying if (path / MANIFEST).is_file()), default=0.0)
    items = []
    for path in sorted((work_dir / "cache" / "predictions").glob("*.jsonl")):
        if path.stat().st_mtime > newest:
            stays, why = True, "answers that no report has read yet"
        elif _in_reports(path, texts):
            stays, why = True, "answers of a report that stays"
        else:
            stays, why = False, "answers of no report that stays"
        items.append(Item("answers", str(path), path.stat().st_size, stays, why))
    return items


def _texts(reports: Iterable[Path]) -> set[tuple[str, str]]:
    """Row id and answer of every prediction of these reports."""
    import pyarrow.parquet as pq

    found: set[tuple[str, str]] = set()
    for report in reports:
        table = pq.read_table(report / "predictions.parquet")
        if {"id", "text"} <= set(table.column_names):
            found.update(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    return found


def _in_reports(path: Path, texts: set[tuple[str, str]]) -> bool:
    with path.open() as stream:
        for _, line in zip(range(SAMPLED), stream, strict=False):
            try:
                answer = json.loads(line)
                if (answer["id"], answer["text"]) not in texts:
                    return False
            except (ValueError, KeyError, TypeError):
                return False
    return True


def plan_remains(work_dir: Path) -> list[Item]:
    """What a prune that was cut off left behind."""
    found = [*work_dir.glob(f"*/{GOING}*"), *(work_dir / "cache" / "predictions").glob(f"{GOING}*")]
    return [Item("remains", str(path), size_of(path), False, "left by a prune that was cut off") for path in found]


def delete(path: Path) -> None:
    """Take a folder or file away; it is gone under its own name at once, and never half there."""
    going = path if path.name.startswith(GOING) else path.with_name(GOING + path.name)
    if going != path:
        path.rename(going)
    if going.is_dir():
        shutil.rmtree(going)
    else:
        going.unlink()
