"""From the id of a served answer, a logged exchange, a row or a conversation, both ways.

Back: the artifact that gave the answer, what people said of it later, the log that it stands in, and the exchanges that
were folded into the row. Forward: in which dataset's split it stands and what learnt from it. A sealed row is judged on
and never learnt, so only reports follow from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.captured_files import ROTATED, captured_lines, ids_of
from potstill.feedback_join import EXCHANGES, FEEDBACK
from potstill.lineage.tree import Known, Node, made_of, of_folder
from potstill.manifest import Manifest
from potstill.members import MEMBERS, exchange_ids, hash64
from potstill.records import Json

MOST_MEMBERS = 50
LEARNT = ("train", "validation")


@dataclass(frozen=True, slots=True)
class Standing:
    """What a dataset made of one exchange: the row that stands for it (None: it is left out), that row's split."""

    folder: Path
    manifest: Manifest
    row: str | None
    split: str | None
    reason: str = ""


def of_id(thing: str, known: Known, work_dir: Path) -> Node | None:
    """The tree of an id; None where no dataset and no captured traffic knows it."""
    datasets = [(folder, manifest) for folder, manifest in known.folders if manifest.kind == "dataset"]
    captured = list(_captured(thing, work_dir))
    standings = [each for folder, manifest in datasets if (each := standing(folder, manifest, thing)) is not None]
    if not captured and not standings:
        return _of_conversation(thing, datasets)
    answered = next((line for _, line in captured if "response" in line), None)
    made_from = [*_given_by(answered, known), *_said_later(captured), *_logged_in(captured, standings)]
    made_from += _folded(thing, standings)
    into = tuple(_taken_into(each, thing, known) for each in standings)
    kind = "answer" if answered is not None and (answered.get("metadata") or {}).get("artifact") else "exchange"
    return Node(kind, thing, "", tuple(made_from), into)


def _captured(thing: str, work_dir: Path) -> Iterator[tuple[str, Json]]:
    """Place and content of every captured line that is the exchange or feedback on it."""
    mark = json.dumps(thing, ensure_ascii=False).encode()
    for pattern in (EXCHANGES, FEEDBACK):
        for path in sorted(work_dir.rglob(pattern)):
            if path.with_suffix(".parquet").exists():
                continue  # it stands there
            with path.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    if mark in line:
                        try:
                            data = json.loads(line)
                        except ValueError:
                            continue
                        if isinstance(data, dict) and data.get("id") == thing:
                            yield f"{path}:{number}", data
    for path in sorted(work_dir.rglob(ROTATED)):
        if thing in ids_of(path):
            yield from ((f"{path}:{at}", data) for at, data in captured_lines(path) if data["id"] == thing)


def _given_by(answered: Json | None, known: Known) -> list[Node]:
    """The artifact whose digest a captured answer carries, with all that it was made from."""
    digest = str((answered or {}).get("metadata", {}).get("artifact") or "")
    if not digest:
        return []
    artifacts = [each for each in known.folders if each[1].kind == "artifact"]
    found = next(((path, each) for path, each in artifacts if each.digest.startswith(digest)), None)
    if found is None:
        return [Node("artifact", digest, "not in this working folder")]
    return [of_folder(*found, known, forward=False)]


def _said_later(captured: Sequence[tuple[str, Json]]) -> list[Node]:
    found = []
    for where, line in captured:
        given = [line["feedback"]] if isinstance(line.get("feedback"), dict) else line.get("feedback") or []
        found += [Node("feedback", str(each.get("kind")), where) for each in given]
    return found


def _logged_in(captured: Sequence[tuple[str, Json]], standings: Sequence[Standing]) -> list[Node]:
    """The lines that it stands in where they are ours, else the logs that its datasets were made from."""
    if lines := [where for where, line in captured if "response" in line]:
        return [Node("captured", "", where) for where in lines]
    logs = {each.digest: each for one in standings for each in one.manifest.inputs if each.role == "traffic"}
    return [Node(each.role, each.digest, each.path) for each in logs.values()]


def _folded(thing: str, standings: Sequence[Standing]) -> list[Node]:
    """The other exchanges that the same row stands for, in the newest dataset that has any."""
    for each in reversed(standings):
        others = [one for one in members_of(each.folder, each.row) if one != thing] if each.row else []
        if others:
            more = [Node("exchange", "…", f"{len(others) - MOST_MEMBERS:,} more")] if len(others) > MOST_MEMBERS else []
            words = f"folded into the same row, {each.row}"
            return [*(Node("exchange", one, words) for one in others[:MOST_MEMBERS]), *more]
    return []


def members_of(folder: Path, row: str) -> list[str]:
    """The ids of the exchanges that a row stands for, in the order of the log; empty where the dataset keeps none."""
    path = folder / MEMBERS
    return [str(each["member"]) for each in _filtered(path, "row", exchange_ids(row))] if path.is_file() else []


def standing(folder: Path, manifest: Manifest, thing: str) -> Standing | None:
    """What became of an exchange (or derived row) in a dataset; None where the dataset never saw it."""
    path = folder / MEMBERS
    if path.is_file():
        rows = _filtered(path, "member", exchange_ids(thing))
        if rows:
            kept = next((each for each in rows if each["split"]), rows[0])
            return Standing(folder, manifest, kept["row"], kept["split"], _reason(folder, thing))
    else:
        for table in sorted(folder.rglob("*.parquet")):
            if table.stem in (*LEARNT, "test") and _filtered(table, "id", [thing]):
                return Standing(folder, manifest, thing, table.stem)
    reason = _reason(folder, thing)
    return Standing(folder, manifest, None, None, reason) if reason else None


def _filtered(path: Path, column: str, values: Sequence[str] | Sequence[int]) -> list[Json]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = [each for each in ("member", "row", "split", "conversation", "id", "reason") if each != column]
    names = [each for each in wanted if each in pq.read_schema(path).names]
    filters: Any = pc.field(column).isin(pa.array(values, pq.read_schema(path).field(column).type))
    found: list[Json] = pq.read_table(path, columns=[column, *names], filters=filters).to_pylist()
    return found


def _reason(folder: Path, thing: str) -> str:
    path = folder / "rejections.parquet"
    rows = _filtered(path, "id", [thing]) if path.is_file() else []
    return str(rows[0]["reason"]) if rows else ""


def _taken_into(each: Standing, thing: str, known: Known) -> Node:
    """The dataset with what became of the exchange in it, and what followed from that."""
    following = made_of(each.manifest.digest, known)
    into: tuple[Node, ...]
    if each.split is None:
        words, into = f"left out: {each.reason or 'another row was kept'}", ()
    elif each.split in LEARNT:
        words, into = each.split, following
    else:
        words, into = "test (sealed: judged on, never learnt)", tuple(_reports(following))
    folded = f", as a part of {each.row}" if each.row not in (None, thing) else ""
    return Node("dataset", each.manifest.digest, f"{each.folder}: {words}{folded}", made_into=into)


def _reports(nodes: Sequence[Node]) -> list[Node]:
    found: dict[str, Node] = {}
    for each in nodes:
        for report in [each] if each.kind == "report" else _reports(each.made_into):
            found.setdefault(report.digest, report)
    return list(found.values())


def _of_conversation(thing: str, datasets: Sequence[tuple[Path, Manifest]]) -> Node | None:
    """The exchanges of a conversation in the newest dataset that knows it."""
    for folder, _ in reversed(datasets):
        path = folder / MEMBERS
        rows = _filtered(path, "conversation", [hash64(thing)]) if path.is_file() else []
        if rows:
            words = [f"{each['split']} as {each['row']}" if each["split"] else "left out" for each in rows]
            children = [Node("exchange", str(each["member"]), said) for each, said in zip(rows, words, strict=True)]
            return Node("conversation", thing, str(folder), tuple(children[:MOST_MEMBERS]))
    return None
