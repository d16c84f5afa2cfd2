"""Doing it: the record first, so that nothing is read again; then every place in an order that a kill cannot spoil.

Files that quote texts come before the rows that hold them, and captured traffic last: after a kill the same request
finds in what is left all that it needs to go on. The record names what was found by digest and count, never a text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from potstill.captured_files import folder_locked
from potstill.errors import PotstillError
from potstill.forgetting.caches import empty_cache
from potstill.forgetting.needles import Needles
from potstill.forgetting.plan import Plan, Trace, find_traces, needles_of
from potstill.forgetting.reading import edits_of, finished_folders, traffic
from potstill.forgetting.strike import (
    strike_captured,
    strike_json,
    strike_ledger,
    strike_lines,
    strike_page,
    strike_table,
)
from potstill.forgetting.suppressed import FOLDER, KINDS, Kind, Suppressed, keyed, records, suppressed
from potstill.forgetting.tombstone import ORDER, Again, Tombstone, read_tombstone, write_tombstone
from potstill.forgetting.usage import strike_usage
from potstill.forgetting.wanted import Wanted
from potstill.manifest import MANIFEST, Manifest, sha256_file, write_atomically
from potstill.pipeline import locked
from potstill.records import Json

IN_ORDER = ("delete", "page", "json", "lines", "ledger", "cache", "usage", "rows", "blank")
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found and done. `record` None: nothing was there to do."""

    plan: Plan
    record: Path | None
    versions: int = 0
    before: tuple[str, ...] = ()  # names of earlier records of the same request


def look(work: Path, kind: Kind, value: str) -> Plan:
    """The plan alone: nothing is changed (but for the key that its hashes need)."""
    wanted, _, _ = _begin(work, kind, value)
    return find_traces(work, wanted)


def _begin(work: Path, kind: Kind, value: str) -> tuple[Wanted, Path | None, list[str]]:
    """What is wanted, with the hashes of an earlier request for the same; its record when it was not finished."""
    wanted = Wanted.of(work, kind, value)
    unfinished, before = None, []
    marks: dict[str, set[str]] = {each: set() for each in KINDS}
    for path, record in records(work):
        if record["who"] == wanted.who:
            before.append(path.name)
            unfinished = path if record["state"] == "begun" else unfinished
            for each in KINDS:
                marks[each].update(record["marks"].get(each, ()))
    if before:
        wanted.known = Suppressed(wanted.key, *(frozenset(marks[each]) for each in KINDS))
    return wanted, unfinished, before


def forget(
    work: Path,
    kind: Kind,
    value: str,
    *,
    by: str,
    why: str,
    refuse: bool = False,
    tag: Callable[[Sequence[Trace], str], int] | None = None,
    step: Step = lambda _: None,
) -> Outcome:
    """Forget; raises PotstillError when a run is at work, or when something is left that nothing can be done about.

    `tag` marks registered versions (given the marked folders and the record's name) and says how many. `step` is told
    of every step before it is taken.
    """
    with ExitStack() as stack:
        for folder in sorted({path.parent.parent for path in work.glob(f"*/*/{MANIFEST}")}):
            if folder.name not in (FOLDER, "mlartifacts", "mlruns"):
                stack.enter_context(locked(folder))
        for folder in sorted({path.parent for path in traffic(work, finished_folders(work))[0]}):
            stack.enter_context(folder_locked(folder))  # no file is rotated into another while lines are struck
        wanted, unfinished, before = _begin(work, kind, value)
        plan = find_traces(work, wanted)
        if unfinished is None and not plan.to_do() and _is_suppressed(work, plan):
            return Outcome(plan, None, before=tuple(before))
        path, record = _record(work, plan, unfinished, by=by, why=why, refuse=refuse)
        traces = [Trace.from_json(each) for each in record["found"]]
        step("record")
        write_atomically(path, _dumped(record))
        _perform(work, plan, traces, record["refuse"], path.name, step)
        versions = tag([each for each in traces if each.again is not None], path.name) if tag is not None else 0
        step("look again")
        left = find_traces(work, _begin(work, kind, value)[0]).to_do()
        left = [each for each in left if each.act != "mark"]
        if left:
            what = ", ".join(f"{each.path} ({each.act})" for each in left[:5])
            raise PotstillError(f"{len(left)} places still hold it: {what}; is something writing there? Run it again")
        step("done")
        write_atomically(path, _dumped(record | {"state": "done", "versions": versions}))
        return Outcome(plan, path, versions, tuple(before))


def _is_suppressed(work: Path, plan: Plan) -> bool:
    """Whether every log that names what is wanted is already kept from being read for it."""
    if not any(each.act == "suppress" for each in plan.traces):
        return True
    known = suppressed(work)
    return all(set(marks) <= getattr(known, kind) for kind, marks in plan.wanted.marks().items())


def _record(work: Path, plan: Plan, unfinished: Path | None, *, by: str, why: str, refuse: bool) -> tuple[Path, Json]:
    """The record to go on with, or a new one, with all that is known now."""
    earlier: Json = json.loads(unfinished.read_text()) if unfinished is not None else {}
    now = datetime.now(UTC)
    path = unfinished or work / FOLDER / f"{now:%Y%m%dT%H%M%S%f}.json"
    found = [Trace.from_json(each) for each in earlier.get("found", ())]
    known = {(each.path, each.act) for each in found}
    found += [each for each in plan.traces if (each.path, each.act) not in known]
    return path, {
        "time": earlier.get("time") or now.isoformat(timespec="seconds"),
        "state": "begun",
        "by": earlier.get("by") or by,
        "why": earlier.get("why") or why,
        "kind": plan.wanted.kind,
        "who": plan.wanted.who,
        "exchanges": max(len(plan.wanted.ids), earlier.get("exchanges", 0)),
        "refuse": refuse or earlier.get("refuse", False),
        "recipes": sorted({*plan.recipes, *earlier.get("recipes", ())}),
        "marks": plan.wanted.marks(),
        "found": [_nameless(each, plan.wanted).to_json() for each in found],
    }


def _nameless(trace: Trace, wanted: Wanted) -> Trace:
    """The trace as the record may keep it: a path that holds the id itself is hashed."""
    if any(len(each) >= 4 and each in trace.path for each in wanted.names) and trace.act == "suppress":
        return replace(trace, path=f"a path that names it ({keyed(wanted.key, 'path', trace.path)})")
    return trace


def _dumped(record: Json) -> bytes:
    return json.dumps(record, indent=1, ensure_ascii=False).encode()


def _perform(work: Path, plan: Plan, traces: Sequence[Trace], refuse: bool, name: str, step: Step) -> None:
    """Tombstones first (what is marked stays marked), then the files, then the tombstones with the new hashes."""
    homes = dict(plan.folders)
    stones = _tombstones(work, homes, traces, refuse, name)
    for folder, stone in stones.items():
        step(f"mark {folder}")
        write_tombstone(folder, homes[folder].digest, stone, plan.wanted.key)
    needles = needles_of(plan.wanted)
    for act in IN_ORDER:
        for trace in traces:
            if trace.act == act:
                step(f"{act} {trace.path}")
                _do(work, trace, plan.wanted, needles, name)
    for folder, stone in stones.items():
        step(f"seal {folder}")
        files = dict(stone.files) | {each: _entry(folder / each) for each in stone.striking}
        write_tombstone(folder, homes[folder].digest, replace(stone, striking=(), files=files), plan.wanted.key)


def _tombstones(
    work: Path, homes: dict[Path, Manifest], traces: Iterable[Trace], refuse: bool, name: str
) -> dict[Path, Tombstone]:
    """What each touched folder will say, an earlier tombstone's words kept."""
    again: dict[Path, Again] = {}
    striking: dict[Path, set[str]] = {}
    for trace in traces:
        path = work / trace.path
        home = path if path in homes else next((each for each in path.parents if each in homes), None)
        if home is None:
            continue
        if trace.act == "mark" and trace.again is not None:
            again[home] = trace.again
        elif trace.act in IN_ORDER and path.name != MANIFEST:
            again.setdefault(home, "nothing")
            striking.setdefault(home, set()).add(path.relative_to(home).as_posix())
    found = {}
    for home, need in again.items():
        old = read_tombstone(home)
        listed = {each for each in striking.get(home, set()) if each in homes[home].files}
        if old is None:
            found[home] = Tombstone(need, refuse, (name,), tuple(sorted(listed)))
            continue
        worst = max(need, old.again, key=ORDER.index)
        names = tuple(dict.fromkeys((*old.records, name)))
        begun = tuple(sorted(listed | set(old.striking)))
        found[home] = Tombstone(worst, refuse or old.refuse, names, begun, old.files)
    return found


def _entry(path: Path) -> Json | None:
    return {"sha256": sha256_file(path), "size_bytes": path.stat().st_size} if path.is_file() else None


def _do(work: Path, trace: Trace, wanted: Wanted, needles: Needles, record: str) -> None:
    """One trace's act; nothing where it was done before a kill."""
    path = work / trace.path
    if trace.act == "delete":
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    elif not path.is_file():
        return
    elif trace.act == "page":
        strike_page(path, record)
    elif trace.act == "json":
        strike_json(path, wanted, needles)
    elif trace.act == "lines":
        strike_lines(path, wanted, needles)
    elif trace.act == "ledger":
        strike_ledger(path, wanted)
    elif trace.act == "cache":
        empty_cache(path)
    elif trace.act == "usage":
        strike_usage(path, wanted)
    elif trace.act == "rows":
        strike_table(path, wanted)
    elif trace.act == "blank":
        strike_captured(path, edits_of(path, wanted)[0])
