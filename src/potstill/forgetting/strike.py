"""Taking rows and texts out of files, each rewritten whole: a kill leaves the old bytes or the new ones.

Only lines of captured traffic are overwritten where they lie, by spaces: a server that appends to the file loses
nothing, and where other lines stand does not change. Every function may be called again on what is done already.
"""

from __future__ import annotations

import gzip
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.captured_files import INDEX, captured_lines, put_in_place, table_of, write_table
from potstill.forgetting.needles import Needles
from potstill.forgetting.reading import Edit, batches, column_names, names_in
from potstill.forgetting.wanted import SHORTEST_ID, Wanted, said
from potstill.manifest import write_atomically

GONE = "(forgotten)"
# Of a contract, a manifest: what a model is told by, never a row; a change would make it another.
NOT_ROWS = frozenset({"task", "chat_template", "prompt_rule", "settings_used", "settings_passed", "files", "stop"})
OWNERS = frozenset({"user", "by", "conversation", "end_user", "safety_identifier"})
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Forgotten</title>
<body><p>This page quoted rows that were forgotten since ({record}), and was taken away with them.
Make it again with the command that made it.</p></body></html>
"""


def strike_captured(path: Path, edits: Sequence[Edit]) -> None:
    """Blank lines, or put shorter ones in their place; files that nobody appends to, compressed and Parquet, are
    rewritten. The ids that are known of the folder are read anew when they are next asked for.
    """
    (path.parent / INDEX).unlink(missing_ok=True)
    if path.suffix == ".parquet":
        _strike_rows(path, edits)
        return
    with path.open("rb") as stream:
        start = stream.read(4)
    if start[:2] == b"\x1f\x8b":
        with gzip.open(path) as whole:
            data = bytearray(whole.read())
        for each in edits:
            data[each.offset : each.offset + each.length] = _filled(each)
        write_atomically(path, gzip.compress(bytes(data)))
        return
    with path.open("r+b", buffering=0) as raw:
        for each in edits:
            os.pwrite(raw.fileno(), _filled(each), each.offset)
        os.fsync(raw.fileno())


def _strike_rows(path: Path, edits: Sequence[Edit]) -> None:
    """A rotated file without the rows that go; one that has no other is removed."""
    by_row = {each.offset: each.new for each in edits}
    kept = []
    for at, line in captured_lines(path):
        new = by_row.get(at - 1, b"")
        if new is not None:
            kept.append(json.loads(new) if new else line)
    if not kept:
        path.unlink()
        return
    write_table(path, iter([table_of(kept)]))
    put_in_place(path)


def _filled(edit: Edit) -> bytes:
    """The new line, or nothing, with spaces up to the old one's length; a line without an end gets none."""
    return (edit.new or b"").ljust(edit.length - 1) + b"\n"


def going(batch: Any, wanted: Wanted) -> tuple[Any, dict[str, Any]]:
    """Which rows of an Arrow batch must go (a mask), and the columns of the others that name one that goes."""
    import numpy as np

    names = set(batch.schema.names)
    key = next((each for each in ("id", "member") if each in names), None)
    out = np.zeros(len(batch), bool)
    if key is None:
        return out, {}
    ids = batch[key].to_pylist()
    out = np.array([wanted.has_id(each) for each in ids], bool)
    if {"step", "row"} <= names:
        texts = batch["row"].to_pylist()
        out |= np.array(
            [one is None and names_in(text.encode("utf-8", "surrogatepass"), wanted)
             for one, text in zip(ids, texts, strict=True)], bool
        )  # fmt: skip
    mended = {}
    for name in sorted(names & {"reason", "evidence"}):
        before = batch[name].to_pylist()
        after = [None if each is None else _without_ids(each, wanted) for each in before]
        if after != before:
            mended[name] = after
    if key == "member":
        before = batch["row"].to_pylist()
        after = [None if each is not None and wanted.has_id(each) else each for each in before]
        if after != before:
            mended["row"] = after
    return out, mended


def _without_ids(text: str, wanted: Wanted) -> str:
    """A reason without the id of a row that goes (ids stand in it as words)."""
    if " " not in text:
        return text
    words = text.split(" ")
    found = [GONE if _is_id(each.strip(",;:()'\""), wanted) else each for each in words]
    return " ".join(found) if found != words else text


def count_rows(path: Path, wanted: Wanted) -> tuple[int, bool]:
    """How many rows of a Parquet file must go, and whether anything in it must change."""
    names = column_names(path)
    if not names & {"id", "member"}:
        return 0, False
    columns = names & {"id", "member", "row", "step", "reason", "evidence"}
    rows, changes = 0, False
    for batch in batches(path, sorted(columns)):
        out, mended = going(batch, wanted)
        rows += int(out.sum())
        changes |= bool(out.any() or mended)
    return rows, changes


def strike_table(path: Path, wanted: Wanted) -> None:
    """Write a Parquet file again without the rows that must go; the others keep order, types and values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial = path.with_name(path.name + ".partial")
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for batch in file.iter_batches():
                out, mended = going(batch, wanted)
                table = pa.Table.from_batches([batch])
                for name, values in mended.items():
                    at = table.schema.get_field_index(name)
                    table = table.set_column(at, schema.field(name), pa.array(values, schema.field(name).type))
                writer.write_table(table.filter(pa.array(~out)))
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, path)


def strike_lines(path: Path, wanted: Wanted, needles: Needles) -> None:
    """A text file without the lines that are of a forgotten row or quote one (a JSON line: by its id)."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [each for each in lines if not line_goes(each, wanted, needles)]
    if len(kept) < len(lines):
        write_atomically(path, b"".join(kept))


def line_goes(line: bytes, wanted: Wanted, needles: Needles) -> bool:
    """Whether a line of text must go."""
    if line.lstrip()[:1] == b"{":
        try:
            data = json.loads(line)
        except ValueError:
            data = {}
        if isinstance(data, dict) and wanted.has_id(data.get("id")):
            return True
    cells = [f"| {wanted.kind} {each} |".encode() for each in wanted.names]  # of a data card's table
    return needles.within(line) or any(each in line for each in cells)


def json_changes(path: Path, wanted: Wanted, needles: Needles) -> bool:
    """Whether `strike_json` would change a file; what cannot be read as JSON it leaves alone."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return False
    return bool(without(found, wanted, needles) != found)


def strike_json(path: Path, wanted: Wanted, needles: Needles) -> None:
    """A JSON file without list entries that are of, or quote, what is forgotten; single texts become `(forgotten)`."""
    data = json.loads(path.read_text())
    found = without(data, wanted, needles)
    if found != data:
        write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False).encode())


def without(value: Any, wanted: Wanted, needles: Needles) -> Any:
    """A JSON value without what is forgotten."""
    if isinstance(value, dict):
        kept = {name: each for name, each in value.items() if name in NOT_ROWS}
        value = {name: each for name, each in value.items() if name not in NOT_ROWS} if kept else value
        named = {name for name, each in value.items() if _names(name, each, value, wanted)}
        found = {name: GONE if name in named else without(each, wanted, needles) for name, each in value.items()}
        return found | kept
    if isinstance(value, list):
        return [without(each, wanted, needles) for each in value if not _entry_goes(each, wanted, needles)]
    return GONE if isinstance(value, str) and (_is_id(value, wanted) or needles.in_text(value)) else value


def _is_id(text: str, wanted: Wanted) -> bool:
    return len(text) >= SHORTEST_ID and wanted.has_id(text)


def _names(name: str, value: object, inside: Any, wanted: Wanted) -> bool:
    """Whether a field names the user or conversation: any other text may be that word by chance."""
    a_name = name in OWNERS or (name == "value" and inside.get("source") == wanted.kind)
    return a_name and isinstance(value, str) and value in wanted.names


def _entry_goes(entry: Any, wanted: Wanted, needles: Needles) -> bool:
    if isinstance(entry, str):
        return _is_id(entry, wanted)
    if isinstance(entry, list):  # a table's row
        return any(isinstance(each, str) and _is_id(each, wanted) for each in entry)
    if not isinstance(entry, dict):
        return False
    if isinstance(entry.get("messages"), list) and not said(entry["messages"]).isdisjoint(wanted.own_texts()):
        return True
    return any(wanted.has_id(entry.get(name)) for name in ("id", "row")) or needles.in_text(
        json.dumps(entry, ensure_ascii=False)
    )


def strike_page(path: Path, record: str) -> None:
    """In place of a page that quoted rows, one that says so."""
    write_atomically(path, PAGE.format(record=html.escape(record)).encode())


def ledger_rows(path: Path, wanted: Wanted) -> int:
    """How many requests a relabelling ledger holds for forgotten rows; none in one from before it kept that."""
    import sqlite3

    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)
    try:
        return len(_asked(base, wanted))
    finally:
        base.close()


def _asked(base: Any, wanted: Wanted) -> list[tuple[str, str]]:
    if not base.execute("SELECT 1 FROM sqlite_master WHERE name = 'asked'").fetchone():
        return []
    return [(key, row) for key, row in base.execute("SELECT key, row FROM asked") if wanted.has_id(row)]


def strike_ledger(path: Path, wanted: Wanted) -> None:
    """Delete a teacher's answers that were asked for about forgotten rows alone; what they cost stays counted."""
    import sqlite3

    base = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        base.execute("PRAGMA secure_delete = ON")  # else the bytes stay in the file's free pages
        base.execute("BEGIN IMMEDIATE")
        for key, row in _asked(base, wanted):
            base.execute("DELETE FROM asked WHERE key = ? AND row = ?", (key, row))
            if not base.execute("SELECT 1 FROM asked WHERE key = ?", (key,)).fetchone():
                base.execute("UPDATE request SET response = NULL WHERE key = ?", (key,))
        base.execute("COMMIT")
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        base.close()
