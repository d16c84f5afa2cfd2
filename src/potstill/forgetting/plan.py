"""The plan of forgetting: every file, folder and version that knows something, and what would be done to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from potstill.captured_files import is_captured
from potstill.forgetting.caches import TABLES, cache_rows
from potstill.forgetting.needles import Needles
from potstill.forgetting.reading import (
    batches,
    column_names,
    edits_of,
    finished_folders,
    foreign_lines,
    read_dataset,
    traffic,
)
from potstill.forgetting.strike import count_rows, json_changes, ledger_rows, line_goes
from potstill.forgetting.suppressed import FOLDER
from potstill.forgetting.tombstone import TOMBSTONE, Again
from potstill.forgetting.usage import USAGE, usage_rows
from potstill.forgetting.wanted import Wanted
from potstill.manifest import MANIFEST, Manifest, sha256_file
from potstill.members import MEMBERS
from potstill.records import Json

Act = Literal[
    "blank", "suppress", "rows", "lines", "json", "page", "ledger", "cache", "usage", "delete", "mark", "look"
]
WORDS: Mapping[Act, str] = {
    "blank": "lines blanked where they lie",
    "suppress": "not ours: not edited, never read again by distill",
    "rows": "rows taken out",
    "lines": "lines taken out",
    "json": "entries taken out",
    "page": "page taken away, a note left",
    "ledger": "the teacher's answers deleted, their cost kept",
    "cache": "emptied: its entries do not tell whose they were; restart a server that runs",
    "usage": "rows of what was used deleted",
    "delete": "deleted",
    "mark": "marked",
    "look": "NOT EDITED: look at it yourself",
}
NEVER = frozenset({".gguf", ".safetensors", ".bin", ".pt", ".onnx", ".lock", ".key", ".png"})
UNFINISHED = re.compile(r"^(dataset|adapter|artifact|report|version)-[0-9a-f]{10}$")
ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Trace:
    """One place that knows something. `path` is relative to the working folder where it lies in it; `rows` 0: unknown.

    `digest` is the file's sha256, or the folder's content digest, before anything was done.
    """

    kind: str
    path: str
    act: Act
    rows: int = 0
    digest: str = ""
    again: Again | None = None

    def to_json(self) -> Json:
        return {name: each for name, each in asdict(self).items() if each not in (None, "", 0)}

    @classmethod
    def from_json(cls, data: Json) -> Trace:
        return cls(**data)


@dataclass
class Plan:
    """Everything found. `recipes` are those whose datasets must be made again."""

    wanted: Wanted
    traces: list[Trace] = field(default_factory=list)
    recipes: list[str] = field(default_factory=list)
    folders: list[tuple[Path, Manifest]] = field(default_factory=list)

    def to_do(self) -> list[Trace]:
        """The traces that something is done about; what is only suppressed or reported is none."""
        return [each for each in self.traces if each.act not in ("suppress", "look")]


def find_traces(work: Path, wanted: Wanted) -> Plan:
    """Look everywhere below the working folder, and in the logs that its datasets were made from."""
    plan = Plan(wanted, folders=finished_folders(work))
    captured, foreign = traffic(work, plan.folders)
    datasets = [(path, manifest) for path, manifest in plan.folders if manifest.kind == "dataset"]
    for _, manifest in plan.folders:
        task = manifest.settings_used.get("task")
        wanted.common.update(each for each in (task or {}).get("labels") or [] if isinstance(each, str))
    edits: dict[Path, int] = {}
    lines: dict[str, int | None] = {}
    for _ in range(ROUNDS):
        grew = False
        for path in captured:
            these, more = edits_of(path, wanted)
            edits[path], grew = len(these), grew or more
        for address in foreign:
            count, more = foreign_lines(address, wanted)
            lines[address] = count
            grew |= more
        for folder, _ in datasets:
            grew |= read_dataset(folder, wanted)
        if not grew:
            break
    for path, changed in edits.items():
        if changed:
            plan.traces.append(Trace("captured traffic", _name(path, work), "blank", changed, sha256_file(path)))
    plan.traces += [Trace("log", address, "suppress", count) for address, count in lines.items() if count]
    needles = needles_of(wanted)
    plan.recipes = sorted(_readers(datasets, lines, {path for path, _ in datasets if _holds(path, wanted)}))
    plan.traces += _files(work, plan, needles)
    plan.traces += _marks(work, plan, datasets)
    return plan


def _holds(folder: Path, wanted: Wanted) -> bool:
    return any(count_rows(path, wanted)[1] for path in sorted(folder.rglob("*.parquet")))


def needles_of(wanted: Wanted) -> Needles:
    """What is looked for in files of any kind; an id too short to be told from other words only where it is a field."""
    return Needles.of(wanted.sought_texts(), wanted.sought_ids())


def _readers(
    datasets: Sequence[tuple[Path, Manifest]], lines: Mapping[str, int | None], touched: set[Path]
) -> set[str]:
    """The recipes whose datasets hold what is wanted, or that read a log which names it."""
    return {
        str(manifest.settings_used.get("name") or folder.parent.name)
        for folder, manifest in datasets
        if folder in touched or any(lines.get(each.path) for each in manifest.inputs)
    }


def _name(path: Path, work: Path) -> str:
    return path.relative_to(work).as_posix() if path.is_relative_to(work) else str(path)


def walk(work: Path) -> Iterator[Path]:
    """Every file that may hold a text, but what forgetting itself keeps."""
    for path in sorted(work.rglob("*")):
        ours = path.name == TOMBSTONE or path.relative_to(work).parts[0] == FOLDER or is_captured(path)
        if not ours and path.is_file() and not path.is_symlink() and path.suffix not in NEVER:
            yield path


def _files(work: Path, plan: Plan, needles: Needles) -> list[Trace]:
    """Files below the working folder that hold rows or texts of what is wanted."""
    homes = dict(plan.folders)
    wide = Needles.of(plan.wanted.own_texts(), {*plan.wanted.ids, *plan.wanted.names})
    leftover = _leftovers(work, plan)
    found = [Trace("unfinished folder", _name(each, work), "delete") for each in leftover]
    for path in walk(work):
        if any(path.is_relative_to(each) for each in leftover) or path.name in TABLES:
            continue
        home = next((homes[each] for each in path.parents if each in homes), None)
        act, rows = _act_on(path, plan.wanted, needles, wide)
        if act is not None:
            kind = f"{home.kind} file" if home is not None else _kind_of(path, work)
            found.append(Trace(kind, _name(path, work), act, rows, sha256_file(path)))
    return [*found, *_caches(work, [*plan.traces, *found]), *_pages_beside(work, homes, found)]


def _caches(work: Path, found: Sequence[Trace]) -> list[Trace]:
    """Kept answers of servers below the working folder, where one of these served what goes."""
    if not any(each.act in ("blank", "usage") for each in found):
        return []
    files = [(path, cache_rows(path)) for path in sorted(work.rglob("*.sqlite")) if path.name in TABLES]
    return [Trace("kept answers", _name(path, work), "cache", rows) for path, rows in files if rows]


def _pages_beside(work: Path, homes: Mapping[Path, Manifest], found: Sequence[Trace]) -> list[Trace]:
    """Pages made of rows that go: a report's own, and those of `potstill look`, which hold rows packed."""
    known = {each.path for each in found}
    struck = [work / each.path for each in found if each.act == "rows"]
    touched = [each for each in homes if any(path.is_relative_to(each) for path in struck)]
    pages = {page for each in touched for page in (*each.glob("*.html"), *each.parent.glob(f"look-{each.name}*.html"))}
    return [
        Trace("page", _name(each, work), "page", 0, sha256_file(each))
        for each in sorted(pages)
        if _name(each, work) not in known
    ]


def _leftovers(work: Path, plan: Plan) -> list[Path]:
    """Folders that a killed run left: they may hold rows in forms that cannot be looked into, and are made anew in any
    case. None where no exchange was found; a half-trained adapter only where its recipe read one.
    """
    if not plan.wanted.ids:
        return []
    scratch = [each for each in work.rglob(".scratch-*") if each.is_dir()]
    unfinished = [
        each
        for each in work.glob("*/*")
        if each.is_dir()
        and UNFINISHED.match(each.name)
        and not (each / MANIFEST).is_file()
        and (not each.name.startswith("adapter-") or each.parent.name in plan.recipes)
    ]
    return sorted({*unfinished, *(each for each in scratch if not any(each.is_relative_to(u) for u in unfinished))})


def _kind_of(path: Path, work: Path) -> str:
    parts = path.relative_to(work).parts
    if "predictions" in parts:
        return "cached answers"
    return "MLflow file" if parts[0] in ("mlartifacts", "mlruns", "mlflow.db") else "other file"


def _act_on(path: Path, wanted: Wanted, needles: Needles, wide: Needles) -> tuple[Act | None, int]:
    """What must be done to a file, and how many rows of it are known to go.

    `wide` are the shorter texts and ids too, which only say that a JSON file's fields are worth a look.
    """
    if path.suffix == ".parquet":
        rows, changes = count_rows(path, wanted)
        if changes:
            return "rows", rows
        return ("look", 0) if not _keeps_ids(path) and needles and needles.in_file(path) else (None, 0)
    if path.name == USAGE:
        rows = usage_rows(path, wanted)
        return ("usage", rows) if rows else (None, 0)
    if path.name == "relabel.sqlite":
        rows = ledger_rows(path, wanted)
        return ("ledger", rows) if rows else (None, 0)
    if path.suffix == ".jsonl":
        rows = _lines_going(path, wanted, needles)
        return ("lines", rows) if rows else (None, 0)
    if path.name.endswith(".partial"):
        return ("delete", 0) if needles and needles.in_file(path) else (None, 0)
    if path.suffix == ".json":
        return ("json", 0) if wide.in_file(path) and json_changes(path, wanted, needles) else (None, 0)
    if path.suffix in (".md", ".txt"):
        rows = _lines_going(path, wanted, needles)
        return ("lines", rows) if rows else (None, 0)
    if not needles or not needles.in_file(path):
        return None, 0
    acts: dict[str, Act] = {".html": "page", ".svg": "delete"}
    return acts.get(path.suffix, "look"), 0


def _keeps_ids(path: Path) -> bool:
    return bool(column_names(path) & {"id", "member"})


def _lines_going(path: Path, wanted: Wanted, needles: Needles) -> int:
    with path.open("rb") as stream:
        return sum(line_goes(each, wanted, needles) for each in stream)


def _marks(work: Path, plan: Plan, datasets: Sequence[tuple[Path, Manifest]]) -> list[Trace]:
    """The datasets that hold rows and everything made from them, with what must be done again."""
    held: dict[str, Again] = {}
    rows: dict[str, int] = {}
    for folder, manifest in datasets:
        inside = {each.path: each.rows for each in plan.traces if each.act == "rows"}
        here = {name: count for name, count in inside.items() if (work / name).is_relative_to(folder)}
        if here:
            again, count = _verdict(folder, plan.wanted)
            rows[manifest.digest] = max(count, rows.get(manifest.digest, 0))
            held[manifest.digest] = _worse(held.get(manifest.digest), again)
    found = [
        Trace("dataset", _name(folder, work), "mark", rows[manifest.digest], manifest.digest, "distill")
        for folder, manifest in datasets
        if manifest.digest in rows
    ]
    fate = _inherited(held, plan.folders)
    for folder, manifest in plan.folders:
        needed = None if manifest.kind == "dataset" else _mark_of(manifest, fate)
        if needed is not None:
            found.append(Trace(manifest.kind, _name(folder, work), "mark", 0, manifest.digest, needed))
    return found


def _inherited(held: Mapping[str, Again], folders: Sequence[tuple[Path, Manifest]]) -> dict[str, Again]:
    """By content digest what must be done again, for datasets and for all that was made from them in any number of
    steps.
    """
    fate = dict(held)
    grew = True
    while grew:
        grew = False
        for _, manifest in folders:
            inherited = [fate[each.digest] for each in manifest.inputs if each.digest in fate]
            worst = max(inherited, key=_rank) if inherited else None
            if worst is not None and _rank(worst) > _rank(fate.get(manifest.digest)):
                fate[manifest.digest], grew = worst, True
    return fate


def _verdict(folder: Path, wanted: Wanted) -> tuple[Again, int]:
    """What a dataset's own rows ask of what was made from it, and how many exchanges of it go."""
    splits: set[str | None] = set()
    count = 0
    if (folder / MEMBERS).is_file():
        for batch in batches(folder / MEMBERS, ["member", "split"]):
            for member, split in zip(batch["member"].to_pylist(), batch["split"].to_pylist(), strict=True):
                if wanted.has_id(member):
                    splits.add(split)
                    count += 1
    for path in sorted(folder.rglob("*.parquet")):
        if path.name in (MEMBERS, "rejections.parquet", "audit.parquet"):
            continue
        rows, _ = count_rows(path, wanted)
        count = max(count, rows)
        if rows:
            splits.add("test" if path.stem == "test" else "train")
    if splits & {"train", "validation"}:
        return "train", count
    return ("evaluate" if "test" in splits else "nothing"), count


def _rank(again: Again | None) -> int:
    order: tuple[Again | None, ...] = (None, "nothing", "evaluate", "distill", "train")
    return order.index(again)


def _worse(one: Again | None, other: Again) -> Again:
    return other if one is None or _rank(other) > _rank(one) else one


def _mark_of(manifest: Manifest, fate: Mapping[str, Again]) -> Again | None:
    """What must be done again for a folder; reports are evaluated again, models only where they learnt from a row."""
    again = fate.get(manifest.digest)
    if again is None or again == "nothing":
        return None
    if manifest.kind == "report":
        return "evaluate"
    if manifest.kind in ("adapter", "artifact"):
        return "train" if again == "train" else None
    return again
