"""The three passes over the blocks of a log, and what each brings back to the driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.dataset import SEALED, example_schema
from potstill.errors import DamagedInput, DamagedLine
from potstill.feedback_join import read_feedback_line
from potstill.logprobs import LOGPROBS, schema
from potstill.members import MEMBERS, members_schema
from potstill.progress import Progress
from potstill.prompt import Parts

from .deliver import DeliverPlan, Slice, deliver
from .describe import DescribePlan, describe, row_type
from .duplicates import Places
from .fingerprints import hash64
from .ingest import FEW_ORIGINALS, Ingested, IngestPlan, Originals, ingest
from .lookup import companion_lines
from .rejections import Rejections, rejected_table
from .runtime import Clock, Runtime
from .sources import FEEDBACK, Log
from .turns import Trace, unlogged_turns
from .verdicts import LEFT_OUT, Verdicts

FORGOTTEN = "read: forgotten"
MEMBERS_AT_ONCE = 1_000_000
SPLIT_NAMES = ("train", "validation", "test")


@dataclass
class Work:
    """What goes along with the rows: where they are spooled, what was counted and found, and what it cost."""

    scratch: Path
    runtime: Runtime
    rejected: Rejections
    steps: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    clock: Clock = field(default_factory=Clock)


@dataclass
class Logged:
    """What the first pass leaves: the blocks, the file of each, parts of prompts, and traces when they are wanted."""

    blocks: tuple[int, ...]
    files: tuple[str, ...]
    size: int
    sample: list[Parts]
    originals: Originals
    traces: list[list[tuple[str, Trace]]]  # by block
    refused: dict[int, set[int]]  # by conversation the turns that selection keeps out


@dataclass
class Rows:
    """What the second pass leaves of every row, by row number.

    `numbers` has `row_type`; `groups` an array of keys (0: none) a group setting; `starts` the first row of each block.
    """

    ids: Any
    numbers: Any
    groups: list[Any]
    traces: list[Trace]
    refused: dict[int, set[int]]
    blocks: tuple[int, ...]
    starts: tuple[int, ...]
    files: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.numbers)

    def places(self, scratch: Path) -> Places:
        return Places(scratch, self.blocks, self.starts)


def ingest_logs(work: Work, plan: IngestPlan, logs: Sequence[Log], damaged_limit: float) -> Logged:
    """Read every log; raises DamagedInput when more lines are damaged than the limit."""
    found = Logged((), (), 0, [], {}, [], {})
    numbers, files = [], []
    asked: set[str] = set()
    with Progress("read and redact", unit="lines") as progress:
        for each in work.runtime.map_blocks(ingest, plan, logs):
            _take(work, each)
            numbers.append(each.block)
            files.append(each.file)
            found.size += each.rows
            found.sample += each.sample
            found.traces.append(each.traces)
            for conversation, turn in each.refused:
                found.refused.setdefault(conversation, set()).add(turn)
            asked |= each.asked
            for said, hashes in each.originals.items():
                found.originals.setdefault(said, set()).update(hashes)
            progress.advance(each.counts["lines"])
    _orphans(work, plan, asked)
    _refuse_damage(work, damaged_limit)
    found.blocks, found.files = tuple(numbers), tuple(files)
    found.originals = {said: hashes for said, hashes in found.originals.items() if len(hashes) <= FEW_ORIGINALS}
    return found


def _take(work: Work, each: Ingested) -> None:
    work.steps.update(each.counts)
    work.found.update(each.found)
    work.clock.seconds.update(each.seconds)
    work.steps["damaged"] += len(each.damaged)
    work.rejected.count(FORGOTTEN, each.counts["forgotten"])
    work.rejected.add(each.damaged)
    work.rejected.add(each.rejected)


def _orphans(work: Work, plan: IngestPlan, asked: set[str]) -> None:
    """Feedback on answers that are in no source is kept aside: it is no damage, and it is not lost."""
    redactor = plan.redact.redactor(plan.key)
    seen: set[tuple[str, int]] = set()  # sources in one folder share its feedback
    for path in plan.companions.values():
        for file, line, record, text in companion_lines(path, FEEDBACK):
            if (file, line) in seen:
                continue
            seen.add((file, line))
            if plan.forgotten.holds_text(text.encode()):
                work.rejected.count(FORGOTTEN, 1)
                work.steps["forgotten"] += 1
                work.steps["lines"] += 1
                continue
            try:
                identity, _ = read_feedback_line(record)
                if identity in asked:
                    continue
                step, reason = "read", "feedback: its exchange is in no source"
                work.steps["feedback without its exchange"] += 1
            except DamagedLine as fault:
                step, reason = "damaged", str(fault)
                work.steps["damaged"] += 1
            work.steps["lines"] += 1
            row = {"id": None, "source": file, "line": line, "step": step, "reason": reason, "row": redactor.text(text)}
            work.rejected.add(rejected_table([row]))


def _refuse_damage(work: Work, limit: float) -> None:
    steps = work.steps
    if steps["damaged"] > limit * steps["lines"]:
        raise DamagedInput(
            f"{steps['damaged']:,} of {steps['lines']:,} lines are damaged, more than damaged_limit {limit:.1%}; "
            f"the first: {work.rejected.first_damaged}; mend the log or raise the limit"
        )


def describe_blocks(work: Work, plan: DescribePlan, logged: Logged) -> Rows:
    """Describe every block."""
    import numpy as np
    import pyarrow as pa

    numbers: list[Any] = [np.zeros(0, row_type())]
    ids, starts, keys, traces, size = [], [], list[list[int]](), list[Trace](), 0
    tasks = zip(logged.blocks, _unlogged(logged), strict=True)
    with Progress("describe and compare", logged.size) as progress:
        for each in work.runtime.map(describe, plan, tasks):
            ids.append(each.ids)
            starts.append(size)
            size += len(each.ids)
            numbers.append(each.rows)
            keys += each.groups
            traces += each.traces
            work.clock.seconds.update(each.seconds)
            work.steps.update(each.counts)
            progress.advance(len(each.rows))
    groups = [np.array([row[at] for row in keys], np.uint64) for at in range(len(plan.groups))]
    rows = np.concatenate(numbers)
    sources = {file: at for at, file in enumerate(dict.fromkeys(logged.files), 1)}
    for file, start, end in zip(logged.files, starts, [*starts[1:], size], strict=True):
        rows["source"][start:end] = sources[file]
    chunked = pa.chunked_array(ids, pa.string())
    return Rows(chunked, rows, groups, traces, logged.refused, logged.blocks, tuple(starts), logged.files)


def _unlogged(logged: Logged) -> list[dict[str, list[int]]]:
    """For each block the assistant turns to make rows of, by the id of the exchange in whose history they stand."""
    conversations: dict[str, list[Trace]] = {}
    for block in logged.traces:
        for conversation, each in block:
            conversations.setdefault(conversation, []).append(each)
    missing = {
        id: at
        for conversation, traces in conversations.items()
        for id, at in unlogged_turns(traces, logged.refused.get(hash64(conversation), ())).items()
    }
    return [{each.id: missing[each.id] for _, each in block if each.id in missing} for block in logged.traces]


def deliver_blocks(work: Work, out: Path, rows: Rows, verdicts: Verdicts) -> None:
    """Write the splits and the rows left out."""
    import pyarrow.parquet as pq

    (out / SEALED).parent.mkdir(parents=True, exist_ok=True)
    paths = [out / "train.parquet", out / "validation.parquet", out / SEALED, out / LOGPROBS]
    schemas = [example_schema()] * 3 + [schema()]
    # Dictionaries pay where values repeat; over a million different prompts they are built to be thrown away.
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["tools", "learn", "metadata"]}
    writers = [pq.ParquetWriter(path, kind, **options) for path, kind in zip(paths, schemas, strict=True)]
    plan = DeliverPlan(work.scratch, tuple(verdicts.reasons))
    try:
        with Progress("write", rows.size) as progress:
            for each in work.runtime.map(deliver, plan, _slices(rows, verdicts)):
                for writer, table in zip(writers, [*each.splits, each.logprobs], strict=True):
                    if len(table):
                        writer.write_table(table)
                work.rejected.add(each.rejected)
                work.clock.seconds.update(each.seconds)
                work.steps.update(each.counts)
                progress.advance(sum(map(len, each.splits)) + len(each.rejected))
    finally:
        for writer in writers:
            writer.close()
    if not any(name.startswith("logprobs") for name in work.steps):
        (out / LOGPROBS).unlink()
    with work.clock.step("write"):
        write_members(out, rows, verdicts)


def write_members(out: Path, rows: Rows, verdicts: Verdicts) -> None:
    """Say of every selected exchange which row stands for it (`potstill.members`)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    standing = verdicts.standing()
    place = verdicts.place[standing]
    ids = rows.ids.combine_chunks() if len(rows.ids) else pa.array([], pa.string())
    names = pa.array(SPLIT_NAMES, pa.string())
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["split"]}
    with pq.ParquetWriter(out / MEMBERS, members_schema(), **options) as writer:
        for start in range(0, rows.size, MEMBERS_AT_ONCE):
            some = slice(start, start + MEMBERS_AT_ONCE)
            out_of_all = place[some] == LEFT_OUT
            columns = [
                ids[some],
                ids.take(pa.array(standing[some], mask=out_of_all)),
                names.take(pa.array(place[some].astype(np.int64), mask=out_of_all)),
                pa.array(rows.numbers["user"][some]),
                pa.array(rows.numbers["conversation"][some]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=members_schema()))


def _slices(rows: Rows, verdicts: Verdicts) -> Any:
    import numpy as np

    ends = [*rows.starts[1:], rows.size]
    answered = np.sort(np.fromiter(verdicts.answers, np.int64, len(verdicts.answers)))
    for block, file, start, end in zip(rows.blocks, rows.files, rows.starts, ends, strict=True):
        here = slice(start, end)
        out = np.flatnonzero((verdicts.place[here] == LEFT_OUT) & (verdicts.twin[here] >= 0))
        ids = rows.ids.take(verdicts.twin[here][out]).to_pylist() if len(out) else []
        mended = answered[np.searchsorted(answered, start) : np.searchsorted(answered, end)].tolist()
        answers = {row - start: verdicts.answers[row] for row in mended}
        yield Slice(
            block, file, verdicts.place[here], verdicts.reason[here], dict(zip(out.tolist(), ids, strict=True)),
            verdicts.weight[here], verdicts.count[here], verdicts.cluster[here], verdicts.whole[here], answers,
            {at: verdicts.samples[start + at] for at in answers if start + at in verdicts.samples},
        )  # fmt: skip
