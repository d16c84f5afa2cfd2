"""Where exchanges stand: captured traffic (ours), the logs that recipes name (not ours), the rows of datasets.

Each reader says what of a file must go, and tells `Wanted` what it learns on the way, until nobody finds more.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from potstill.captured_files import HEADS, is_captured, parquet_lines
from potstill.errors import DamagedLine, ManifestMismatch
from potstill.forgetting.wanted import SHORTEST_TEXT, Wanted, answers_of, exchange_parts, said
from potstill.manifest import MANIFEST, Manifest, read_manifest
from potstill.members import MEMBERS, exchange_ids
from potstill.records import Json

ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Edit:
    """A line of captured traffic at its place in the (decompressed) file; `new` None takes it out whole.

    Of a Parquet file `offset` is the number of the row, and `length` is 1.
    """

    offset: int
    length: int
    new: bytes | None


def finished_folders(work: Path) -> list[tuple[Path, Manifest]]:
    """Every folder with a manifest of ours below the working folder, MLflow's copies included."""
    found = []
    for path in sorted(work.rglob(MANIFEST)):
        try:
            found.append((path.parent, read_manifest(path.parent, verify=False)))
        except (ManifestMismatch, UnicodeDecodeError):
            continue
    return found


def traffic(work: Path, folders: Iterable[tuple[Path, Manifest]]) -> tuple[list[Path], list[str]]:
    """Captured files (in the working folder, or read by one of its datasets), and all other logs by address."""
    captured = {path for head in HEADS for path in work.rglob(f"{head}*") if is_captured(path) and path.is_file()}
    foreign: dict[str, None] = {}
    for _, manifest in folders:
        for each in manifest.inputs:
            if manifest.kind != "dataset" or each.role.split(".")[0] != "traffic":
                continue
            path = Path(each.path)
            if "://" not in each.path and is_captured(path) and path.is_file():
                captured |= {other for other in path.parent.iterdir() if is_captured(other)}
            elif not is_captured(path):
                foreign[each.path] = None
    return sorted(captured), list(foreign)


def opened(path: Path) -> IO[bytes]:
    """A file's bytes, behind gzip or zstd where it begins so."""
    stream = path.open("rb")
    start = stream.read(4)
    stream.seek(0)
    if start[:2] == b"\x1f\x8b":
        return gzip.open(stream)  # type: ignore[return-value]
    if start == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd"))
    return stream


def edits_of(path: Path, wanted: Wanted) -> tuple[list[Edit], bool]:
    """What must go of a captured file, and whether more is known now than before it was read."""
    import orjson

    if path.suffix == ".parquet":
        return _edits_of_rows(path, wanted)
    edits, grew, offset = [], False, 0
    exchanges = path.name.startswith(HEADS[0])
    with opened(path) as stream:
        for line in stream:
            at, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                data = orjson.loads(line)
            except orjson.JSONDecodeError:
                data = None
            if not isinstance(data, dict):
                if names_in(line, wanted):
                    edits.append(Edit(at, len(line), None))
                continue
            found, more = _exchange(data, wanted) if exchanges else (_feedback_goes(data, wanted), False)
            grew |= more
            new = None if found else _without_opinions(data, wanted)
            if found or new is not None:
                edits.append(Edit(at, len(line), new))
    return edits, grew


def _edits_of_rows(path: Path, wanted: Wanted) -> tuple[list[Edit], bool]:
    """As `edits_of`, for a file that was rotated; one that is not whole is none of ours to judge."""
    edits, grew = [], False
    try:
        for at, data in enumerate(parquet_lines(path)):
            found, more = _exchange(data, wanted)
            grew |= more
            new = None if found else _without_opinions(data, wanted)
            if found or new is not None:
                edits.append(Edit(at, 1, new))
    except DamagedLine:
        return [], grew
    return edits, grew


def names_in(text: bytes, wanted: Wanted) -> bool:
    """Whether a text that cannot be parsed names what is wanted as a quoted word."""
    return any(each in text for each in quoted([*wanted.names, *wanted.ids])) or wanted.known.holds_text(text)


def quoted(names: Iterable[str]) -> list[bytes]:
    import orjson

    return [orjson.dumps(each) for each in names]


def _exchange(data: Json, wanted: Wanted) -> tuple[bool, bool]:
    """Whether an exchange must go, and whether that told something new."""
    parts = exchange_parts(data)
    if parts is None:
        return False, False
    identity, request, metadata = parts
    messages = request.get("messages") or []
    if wanted.takes(identity, request, metadata):
        return True, wanted.take(identity, messages, metadata, answers_of(data.get("response") or {}))
    wanted.common |= said(messages) & wanted.texts
    return False, False


def _feedback_goes(data: Json, wanted: Wanted) -> bool:
    return wanted.has_id(data.get("id")) or _is_by(data.get("feedback"), wanted)


def _is_by(opinion: object, wanted: Wanted) -> bool:
    return wanted.kind == "user" and isinstance(opinion, Mapping) and opinion.get("by") in wanted.names


def _without_opinions(data: Json, wanted: Wanted) -> bytes | None:
    """The line without what a forgotten user said of somebody else's exchange; None where nothing changes."""
    import orjson

    opinions = data.get("feedback")
    if not isinstance(opinions, list) or not any(_is_by(each, wanted) for each in opinions):
        return None
    return orjson.dumps(data | {"feedback": [each for each in opinions if not _is_by(each, wanted)]})


def foreign_lines(address: str, wanted: Wanted) -> tuple[int | None, bool]:
    """How many lines of a log that is not ours name what is wanted (None: not looked into), and whether more is known.

    Lines in the form of captured traffic tell ids and texts; of others only that they name it.
    """
    import orjson

    path = Path(address)
    if "://" in address or not path.is_file():
        return None, False
    count, grew = 0, False
    marks = quoted([*wanted.names, *wanted.ids, *wanted.conversations])
    try:
        with opened(path) as stream:
            if stream.peek(4)[:4] == b"PAR1":  # type: ignore[attr-defined]
                return None, False
            for line in stream:
                if not any(each in line for each in marks):
                    continue
                try:
                    data = orjson.loads(line)
                except orjson.JSONDecodeError:
                    data = None
                parts = exchange_parts(data) if isinstance(data, dict) else None
                if parts is None:
                    count += names_in(line, wanted)
                    continue
                found, more = _exchange(data, wanted)
                count, grew = count + found, grew or more
    except (OSError, EOFError):
        return None, False
    return count, grew


def read_dataset(folder: Path, wanted: Wanted) -> bool:
    """Learn from a dataset which exchanges are wanted; says whether more is known now."""
    before = len(wanted.ids)
    path = folder / MEMBERS
    if path.is_file():
        _read_members(path, wanted)
    grew = len(wanted.ids) > before
    for path in sorted(folder.rglob("*.parquet")):
        names = column_names(path)
        if {"id", "metadata", "messages", "conversation"} <= names:
            grew |= _read_rows(path, wanted, "full_messages" if "full_messages" in names else "messages")
        elif {"id", "step", "row"} <= names:
            grew |= _read_rejections(path, wanted)
    return grew


def column_names(path: Path) -> set[str]:
    """The columns of a Parquet file; none where it is not whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return set(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError):
        return set()


def batches(path: Path, columns: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(ROWS_AT_ONCE, columns=columns)


def _read_members(path: Path, wanted: Wanted) -> None:
    import numpy as np

    users, conversations = wanted.hashes()
    if not users and not conversations:
        return
    for batch in batches(path, ["member", "user", "conversation"]):
        hit = np.zeros(len(batch), bool)
        for name, hashes in (("user", users), ("conversation", conversations)):
            hit |= np.isin(batch[name].to_numpy(), np.array(sorted(hashes), np.uint64))
        wanted.ids.update(batch["member"].filter(hit).to_pylist())


def _read_rows(path: Path, wanted: Wanted, asked: str) -> bool:
    import orjson

    grew = False
    columns = column_names(path)
    answers = [name for name in ("answer", "teacher_text", "chosen", "rejected") if name in columns]
    judged = bool(columns & {"chosen", "desirable"})  # of two exchanges perhaps, of which one is somebody else's
    for batch in batches(path, ["id", "conversation", "metadata", asked, *answers]):
        for row in batch.to_pylist():
            metadata = orjson.loads(row["metadata"])
            metadata = {"conversation": row["conversation"]} | metadata
            messages = orjson.loads(row[asked])
            if judged:
                if wanted.has_id(row["id"]):
                    wanted.texts |= said(messages) | {row[name] for name in answers if len(row[name]) >= SHORTEST_TEXT}
            elif wanted.takes(row["id"], {"messages": messages}, metadata):
                logged = next((each for each in exchange_ids(row["id"]) if each in wanted.ids), row["id"])
                grew |= wanted.take(logged, messages, metadata, [row[name] for name in answers])
            else:
                wanted.common |= (said(messages) | {row[name] for name in answers}) & wanted.texts
    return grew


def _read_rejections(path: Path, wanted: Wanted) -> bool:
    import orjson

    grew = False
    for batch in batches(path, ["id", "row"]):
        for row in batch.to_pylist():
            try:
                data = orjson.loads(row["row"])
            except orjson.JSONDecodeError:
                continue
            if not isinstance(data, dict) or row["id"] is None:
                continue
            request = data.get("request") or {"messages": data.get("messages") or []}
            metadata = data.get("metadata") or {}
            if wanted.takes(row["id"], request, metadata):
                answers = [*answers_of(data.get("response") or {}), data.get("answer"), data.get("teacher")]
                grew |= wanted.take(row["id"], request.get("messages") or [], metadata, answers)
    return grew
