"""The three passes over the blocks of a log, and what each brings back to the driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.dataset import SEALED, example_schema
from potstill.errors import DamagedInput
from potstill.progress import Progress
from potstill.prompt import Parts

from .deliver import DeliverPlan, Slice, deliver
from .describe import DescribePlan, describe, row_type
from .duplicates import Places
from .ingest import FEW_ORIGINALS, Ingested, IngestPlan, Originals, ingest
from .lookup import unused
from .rejections import Rejections, rejected_table
from .runtime import Runtime
from .sources import Log
from .verdicts import LEFT_OUT, Verdicts


@dataclass
class Work:
    """What goes along with the rows: where they are spooled, what was counted and found, and what it cost."""

    scratch: Path
    runtime: Runtime
    rejected: Rejections
    steps: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)


@dataclass
class Logged:
    """What the first pass leaves: ids by row number, the first row of each block, its file, parts of prompts."""

    ids: Any
    blocks: tuple[int, ...]
    starts: tuple[int, ...]
    files: tuple[str, ...]
    sample: list[Parts]
    originals: Originals

    @property
    def size(self) -> int:
        return len(self.ids)

    def places(self, scratch: Path) -> Places:
        return Places(scratch, self.blocks, self.starts)


def ingest_logs(work: Work, plan: IngestPlan, logs: Sequence[Log], damaged_limit: float) -> Logged:
    """Read every log; raises DamagedInput when more lines are damaged than the limit."""
    import pyarrow as pa

    ids, numbers, starts, files, size = [], [], [], [], 0
    sample: list[Parts] = []
    originals: Originals = {}
    asked: set[str] = set()
    with Progress("read and redact", unit="lines") as progress:
        for each in work.runtime.map_blocks(ingest, plan, logs):
            _take(work, each)
            ids.append(each.ids)
            numbers.append(each.block)
            starts.append(size)
            files.append(each.file)
            size += len(each.ids)
            sample += each.sample
            asked |= each.asked
            for said, hashes in each.originals.items():
                originals.setdefault(said, set()).update(hashes)
            progress.advance(each.counts["lines"])
    _orphans(work, plan, asked)
    _refuse_damage(work, damaged_limit)
    originals = {said: hashes for said, hashes in originals.items() if len(hashes) <= FEW_ORIGINALS}
    return Logged(pa.chunked_array(ids, pa.string()), tuple(numbers), tuple(starts), tuple(files), sample, originals)


def _take(work: Work, each: Ingested) -> None:
    work.steps.update(each.counts)
    work.found.update(each.found)
    work.seconds.update(each.seconds)
    work.steps["damaged"] += len(each.damaged)
    work.rejected.add(each.damaged)
    work.rejected.add(each.rejected)


def _orphans(work: Work, plan: IngestPlan, asked: set[str]) -> None:
    """Feedback on answers that are in no source is kept aside: it is no damage, and it is not lost."""
    from potstill.redaction import Redactor

    redactor = Redactor(plan.redact.kinds, plan.redact.region)
    for path in plan.companions.values():
        for file, line, key, text in unused(path, "feedback", asked):
            reason = "feedback: its exchange is in no source" if key else "feedback line: not JSON with an id"
            step = "read" if key else "damaged"
            work.steps["feedback without its exchange" if key else "damaged"] += 1
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


def describe_blocks(work: Work, plan: DescribePlan, logged: Logged) -> tuple[Any, list[Any]]:
    """The rows' numbers (`row_type`, shape (rows,)) and, a group setting, their keys (0: none)."""
    import numpy as np

    parts: list[Any] = [np.zeros(0, row_type())]
    keys: list[list[int]] = []
    with Progress("describe and compare", logged.size) as progress:
        for each in work.runtime.map(describe, plan, logged.blocks):
            parts.append(each.rows)
            keys += each.groups
            work.seconds.update(each.seconds)
            progress.advance(len(each.rows))
    groups = [np.array([row[at] for row in keys], np.uint64) for at in range(len(plan.groups))]
    rows = np.concatenate(parts)
    sources = {file: at for at, file in enumerate(dict.fromkeys(logged.files), 1)}
    ends = [*logged.starts[1:], len(rows)]
    for file, start, end in zip(logged.files, logged.starts, ends, strict=True):
        rows["source"][start:end] = sources[file]
    return rows, groups


def deliver_blocks(work: Work, out: Path, logged: Logged, verdicts: Verdicts) -> None:
    """Write the splits and the rows left out."""
    import pyarrow.parquet as pq

    (out / SEALED).parent.mkdir(parents=True, exist_ok=True)
    paths = [out / "train.parquet", out / "validation.parquet", out / SEALED]
    writers = [pq.ParquetWriter(path, example_schema(), compression="zstd") for path in paths]
    plan = DeliverPlan(work.scratch, tuple(verdicts.reasons))
    try:
        with Progress("write", logged.size) as progress:
            for each in work.runtime.map(deliver, plan, _slices(logged, verdicts)):
                for writer, table in zip(writers, each.splits, strict=True):
                    if len(table):
                        writer.write_table(table)
                work.rejected.add(each.rejected)
                work.seconds.update(each.seconds)
                progress.advance(sum(map(len, each.splits)) + len(each.rejected))
    finally:
        for writer in writers:
            writer.close()


def _slices(logged: Logged, verdicts: Verdicts) -> Any:
    import numpy as np

    ends = [*logged.starts[1:], logged.size]
    for block, file, start, end in zip(logged.blocks, logged.files, logged.starts, ends, strict=True):
        here = slice(start, end)
        out = np.flatnonzero((verdicts.place[here] == LEFT_OUT) & (verdicts.twin[here] >= 0))
        ids = logged.ids.take(verdicts.twin[here][out]).to_pylist() if len(out) else []
        answers = {row - start: text for row, text in verdicts.answers.items() if start <= row < end}
        yield Slice(
            block, file, verdicts.place[here], verdicts.reason[here], dict(zip(out.tolist(), ids, strict=True)),
            verdicts.weight[here], verdicts.count[here], verdicts.cluster[here], answers,
        )  # fmt: skip
