"""The first pass: a block's records -> exchanges, selected, redacted, spooled. Nothing unredacted reaches the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import DamagedLine
from potstill.feedback_join import read_feedback_line
from potstill.forgetting.suppressed import Suppressed
from potstill.prompt import Parts, instructions, parts_of, sha256_text
from potstill.records import Exchange, Json, canonical_json
from potstill.redaction import Redactor, redact_batch
from potstill.tasks import task_from

from .choose import Select, matches, score_refusal
from .connectors import connector
from .connectors.base import Lookup, NoCompanions
from .fingerprints import hash64
from .lookup import Companions, SqliteLookup
from .redact import Redact
from .rejections import rejected_table
from .runtime import Clock
from .sources import FEEDBACK, Block
from .spool import write_spool
from .thoughts import set_apart, still_said
from .turns import Trace, Turns, trace

if TYPE_CHECKING:
    import pyarrow as pa

Refused = tuple[int, int]  # a turn that selection keeps out: hash of its conversation, last hash of its trace
FIELDS = frozenset(Exchange.__dataclass_fields__)
Originals = dict[tuple[str, str], set[str]]
FEW_ORIGINALS = 256  # an instruction with more wordings than these before redaction is a form filled in, not standing


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """What the first pass needs besides a block. `sample_share` of the rows go to the search for standing prompts."""

    scratch: Path
    companions: Companions
    select: Select
    redact: Redact
    key: bytes
    sample_share: float
    turns: Turns = "logged"
    task: Mapping[str, Any] | None = None  # needed for turns other than the logged ones
    forgotten: Suppressed = field(default_factory=Suppressed)


@dataclass
class Ingested:
    """What the first pass found in one block; its exchanges are in the spool."""

    block: int
    file: str
    rows: int
    counts: Counter[str]
    found: Counter[str]
    damaged: pa.Table
    rejected: pa.Table
    sample: list[Parts]
    originals: Originals
    traces: list[tuple[str, Trace]]  # with the conversation
    refused: list[Refused]
    asked: set[str]  # companion keys of feedback that were looked up
    seconds: Counter[str] = field(default_factory=Counter)


def ingest(plan: IngestPlan, task: tuple[int, Block]) -> Ingested:
    """Read, select, redact and spool one block."""
    import pyarrow as pa

    number, block = task
    clock, counts = Clock(), Counter[str]()
    redactor = plan.redact.redactor(plan.key)
    kept: list[Exchange] = []
    texts: list[str] = []
    lines: list[int] = []
    logprobs: list[str | None] = []
    left: list[tuple[int, str, Exchange]] = []
    damaged: list[tuple[int, str, bytes]] = []
    forgotten: set[str] = set()
    with clock.step("read"):
        for line, logged, written in _exchanges(plan, block, counts, damaged):
            if plan.forgotten:
                if plan.forgotten.holds(logged):
                    forgotten.add(logged.id)
                    counts["forgotten"] += 1
                    continue
                logged, written = _without_opinions(plan.forgotten, logged, written)
            found, text, said = set_apart(logged, written)
            reason = _unselected(plan.select, found)
            if reason is None:
                kept.append(found)
                texts.append(text or _dumped(found))
                lines.append(line)
                logprobs.append(said)
            else:
                left.append((line, reason, found))
        before = pa.array(texts, pa.string())
    with clock.step("redact"):
        redacted, _ = redact_batch(before, redactor)
        originals = _originals(before, redacted)
        logprobs = still_said(logprobs, before, redacted, counts)
        rejected = _rejected(block, left, redactor)
        torn = _damaged(block, _not_forgotten(plan.forgotten, damaged, counts), redactor)
    with clock.step("read"):
        sample = _sample(plan, redacted)
        traces = _traces(plan, kept) if plan.turns == "every" else []
        refused = [
            (hash64(conversation), each.hashes[-1])
            for conversation, each in _traces(plan, [exchange for _, _, exchange in left])
        ]
        table = pa.table(
            {
                "exchange": redacted,
                "line": pa.array(lines, pa.int64()),
                "logprobs": pa.array(logprobs, pa.string()),
            }
        )
        write_spool(plan.scratch, "read", number, table)
    counts["exchanges"] += len(kept) + len(left)
    counts["selected"] += len(kept)
    asked = {*forgotten, *(each.id for each in kept), *(each.id for _, _, each in left)}
    asked = asked if block.source in plan.companions else set()
    return Ingested(
        number,
        block.file,
        len(kept),
        counts,
        redactor.found,
        torn,
        rejected,
        sample,
        originals,
        traces,
        refused,
        asked,
        clock.seconds,
    )


def _exchanges(
    plan: IngestPlan, block: Block, counts: Counter[str], damaged: list[tuple[int, str, bytes]]
) -> Iterator[tuple[int, Exchange, str | None]]:
    """Every exchange of the block, checked, with the number of its record and its JSON where that stands in the log."""
    import orjson

    read = connector(block.format).read
    path = plan.companions.get(block.source)
    lookup: Lookup = SqliteLookup(path) if path else NoCompanions()
    for line_number, line in enumerate(block.lines.split(b"\n")[:-1], block.first):
        if not line or line.isspace():
            continue
        counts["lines"] += 1
        try:
            record = orjson.loads(line)
            if not isinstance(record, dict):
                raise DamagedLine(f"record: found {type(record).__name__}, expected an object")
            for exchange in read(record, lookup):
                whole = _with_feedback(exchange, lookup) if path else exchange
                if whole is record and record.keys() == FIELDS:  # the connector found it normal as it stands
                    yield line_number, Exchange(**record | {"feedback": ()}), line.decode()
                else:
                    yield line_number, Exchange.from_json(whole), None
        except orjson.JSONDecodeError as fault:
            damaged.append((line_number, f"not JSON: {fault}", line))
        except DamagedLine as fault:
            damaged.append((line_number, str(fault), line))


def _with_feedback(exchange: Json, lookup: Lookup) -> Json:
    """The exchange with the feedback that came after it was captured, in the order of time; faulty lines apart."""
    later = []
    for line in lookup.get(FEEDBACK, str(exchange.get("id"))):
        with suppress(DamagedLine):  # reported with file and line once all is read
            later.append(read_feedback_line(line)[1])
    later.sort(key=lambda each: each.time or "")
    given = exchange.get("feedback") or []
    return {**exchange, "feedback": [*given, *(each.to_json() for each in later)]} if later else exchange


def _without_opinions(forgotten: Suppressed, exchange: Exchange, written: str | None) -> tuple[Exchange, str | None]:
    """The exchange without what forgotten users said of it; its JSON as logged only where nothing is left out."""
    kept = tuple(each for each in exchange.feedback if not forgotten.names("user", each.by))
    return (exchange, written) if len(kept) == len(exchange.feedback) else (replace(exchange, feedback=kept), None)


def _not_forgotten(
    forgotten: Suppressed, damaged: list[tuple[int, str, bytes]], counts: Counter[str]
) -> list[tuple[int, str, bytes]]:
    """Damaged lines but those that name something forgotten, which are counted and kept nowhere."""
    kept = [each for each in damaged if not forgotten.holds_text(each[2])]
    if len(kept) < len(damaged):
        counts["forgotten"] += len(damaged) - len(kept)
    return kept


def _unselected(select: Select, exchange: Exchange) -> str | None:
    if not matches(exchange, select.where):
        return "not selected by select.where"
    return score_refusal(exchange, select.scores)


def _dumped(exchange: Exchange) -> str:
    import orjson

    return orjson.dumps(exchange.to_json()).decode()


def _originals(before: pa.Array, after: pa.Array) -> Originals:
    """The hashes of instructions that redaction changed: serving tells live ones by them."""
    import orjson
    import pyarrow.compute as pc

    found: Originals = {}
    changed = pc.not_equal(before, after)
    for old, new in zip(before.filter(changed).to_pylist(), after.filter(changed).to_pylist(), strict=True):
        was, now = (instructions(orjson.loads(each)["request"]["messages"]) for each in (old, new))
        for one, other in zip(was, now, strict=True):
            if one != other:
                found.setdefault(other, set()).add(sha256_text(one[1]))
    return found


def _sample(plan: IngestPlan, exchanges: pa.Array) -> list[Parts]:
    """Instructions and first user turn of some rows: all of a small log, evenly spread ones of a large one."""
    import orjson
    import pyarrow as pa

    if plan.sample_share <= 0:
        return []
    step = max(1, round(1 / plan.sample_share))
    chosen = exchanges.take(pa.array(range(0, len(exchanges), step), pa.int64())).to_pylist()
    return [parts_of(orjson.loads(text)["request"]["messages"]) for text in chosen]


def _traces(plan: IngestPlan, exchanges: list[Exchange]) -> list[tuple[str, Trace]]:
    if plan.turns == "logged" or plan.task is None:
        return []
    task, checked = task_from(dict(plan.task)), dict[int, bool]()
    return [(each.conversation, trace(each, task, checked)) for each in exchanges]


def _rejected(block: Block, left: list[tuple[int, str, Exchange]], redactor: Redactor) -> pa.Table:
    return rejected_table(
        {
            "id": each.id,
            "source": block.file,
            "line": line,
            "step": "select",
            "reason": reason,
            "row": canonical_json(redactor.exchange(each.to_json())),
        }
        for line, reason, each in left
    )


def _damaged(block: Block, damaged: list[tuple[int, str, bytes]], redactor: Redactor) -> pa.Table:
    return rejected_table(
        {
            "id": None,
            "source": block.file,
            "line": line,
            "step": "damaged",
            "reason": redactor.text(reason),
            "row": redactor.text(text.decode("utf-8", "replace")),
        }
        for line, reason, text in damaged
    )
