"""The second pass: a block's exchanges -> rows of a dataset, with what they are compared, divided and judged by."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.dataset import JSON_COLUMNS, example_schema
from potstill.prompt import PromptRule
from potstill.records import Example, Exchange, Feedback, Message
from potstill.tasks import task_from

from .choose import Corrections, matches, thumbs_down, to_example
from .filters import Filters, answer_reasons, selection_reasons
from .fingerprints import band_keys, hash64, prompt_text, shares_of, signatures
from .groups import Group, group_key
from .redact import comparable
from .runtime import Clock
from .samples import Samples, sampled
from .shorten import Cut, shorten
from .spool import read_spool, write_spool
from .turns import Trace, Turns, trace, with_unlogged

if TYPE_CHECKING:
    import pyarrow as pa

RECORDED = {"train": 0, "validation": 1, "test": 2}
UNRECORDED = -1


@dataclass(frozen=True, slots=True)
class DescribePlan:
    """What the second pass needs besides a block. `standing` texts are never compared."""

    scratch: Path
    task: Mapping[str, Any]
    standing: PromptRule
    internalise: bool
    corrections: Corrections
    filters: Filters
    recorded: Mapping[str, Mapping[str, Any]]  # split -> where
    groups: tuple[Group, ...]
    seed: int
    threshold: float
    turns: Turns
    longest_prompt: int | None  # characters
    samples: Samples = "first"


@dataclass
class Described:
    """One block's row of numbers for each of its rows (`row_type`), and its group keys."""

    block: int
    ids: pa.Array
    rows: Any
    groups: list[list[int]]
    traces: list[Trace]
    counts: Counter[str]
    seconds: Counter[str] = field(default_factory=Counter)


def row_type() -> Any:
    """What the driver knows of a row: 64-bit hashes (0: none), its place in [0, 1) for splitting, and marks."""
    import numpy as np

    return np.dtype(
        [
            ("prompt", "u8"), ("request", "u8"), ("conversation", "u8"), ("user", "u8"), ("key", "u8"),
            ("answer", "u8"), ("source", "u8"), ("share", "f8"), ("time", "f8"), ("turns", "i4"), ("length", "i4"),
            ("recorded", "i1"),
            ("corrected", "?"), ("teaches", "?"), ("selected", "?"), ("opinion", "?"), ("down", "?"),
        ]
    )  # fmt: skip


def describe(plan: DescribePlan, given: tuple[int, Mapping[str, Sequence[int]]]) -> Described:
    """Make, compare and spool the rows of one block; `given` is its number and the unlogged turns to make, by id."""
    import numpy as np
    import pyarrow as pa

    block, unlogged = given
    clock, counts = Clock(), Counter[str]()
    task = task_from(dict(plan.task))
    with clock.step("examples"):
        items = _items(plan, block, unlogged)
        exchanges = [each.exchange for each in items]
        bare = [plan.standing.apply(each.messages) for each in exchanges]
        texts = [comparable(prompt_text(each)) for each in bare]
        prompts = bare if plan.internalise else [each.messages for each in exchanges]
        prompts, cuts = _shortened(plan, prompts, exchanges)
        counts["shortened"] = sum(each is not None and each.fits for each in cuts)
        made = [
            to_example(each, task, prompt, plan.corrections) for each, prompt in zip(exchanges, prompts, strict=True)
        ]
        examples = [example for example, _ in made]
        drawn = [sampled(each, task) if plan.samples == "all" else None for each in exchanges]
        table = _table(items, examples, [refusal for _, refusal in made], texts, list(map(_too_long, cuts)), drawn)
    with clock.step("filter"):
        table, selected, teaches, down = _filtered(table, plan.filters, [thumbs_down(each) for each in exchanges])
    with clock.step("fingerprint"):
        signature = signatures(texts)
        np.save(plan.scratch / f"bands-{block:010d}.npy", band_keys(signature, plan.threshold))
        rows = _rows(plan, exchanges, examples, texts, table)
        rows["selected"], rows["teaches"], rows["down"] = selected, teaches, down
    with clock.step("examples"):
        write_spool(plan.scratch, "rows", block, table, mapped=True)
        groups = _groups(plan, exchanges)
        checked: dict[int, bool] = {}
        traces = [trace(each, task, checked) for each in exchanges] if plan.turns == "whole" else []
        # what is cut off the beginning of a conversation would be learnt nowhere, were its own rows left out for it
        traces = [
            each if cut is None else replace(each, spoilt=(*each.spoilt, each.hashes[-1]))
            for each, cut in zip(traces, cuts, strict=plan.turns == "whole")
        ]
    ids = pa.array([each.id for each in exchanges], pa.string())
    return Described(block, ids, rows, groups, traces, counts, clock.seconds)


@dataclass(frozen=True, slots=True)
class _Item:
    """An exchange with the number of its record and its place in the spool of the first pass."""

    exchange: Exchange
    line: int
    read_at: int


def _items(plan: DescribePlan, block: int, unlogged: Mapping[str, Sequence[int]]) -> list[_Item]:
    import orjson

    read = read_spool(plan.scratch, "read", block)
    lines = read.column("line").to_pylist()
    found = [trusted(orjson.loads(each)) for each in read.column("exchange").to_pylist()]
    if not unlogged:
        return [_Item(each, lines[at], at) for at, each in enumerate(found)]
    return [
        _Item(each, lines[at], at) for at, logged in enumerate(found) for each, _ in with_unlogged([logged], unlogged)
    ]


def _shortened(
    plan: DescribePlan, prompts: list[list[Message]], exchanges: Sequence[Exchange]
) -> tuple[list[list[Message]], list[Cut | None]]:
    """Prompts cut to the recipe's length, and what was cut of each."""
    if plan.longest_prompt is None:
        return prompts, [None] * len(prompts)
    made = [
        shorten(each, plan.longest_prompt, len, exchange.tools)
        for each, exchange in zip(prompts, exchanges, strict=True)
    ]
    return [prompt for prompt, _ in made], [cut for _, cut in made]


def _too_long(cut: Cut | None) -> str | None:
    return None if cut is None or cut.fits else f"prompt too long to be shortened: {cut}"


def trusted(data: dict[str, Any]) -> Exchange:
    """An exchange that this run wrote itself: nothing to check."""
    opinions = tuple(Feedback(**each) for each in data.pop("feedback"))
    return Exchange(**data, feedback=opinions)


def spool_schema() -> pa.Schema:
    """The columns of a described row: those of an example, and what judges it."""
    import pyarrow as pa

    text = pa.string()
    names = ("prompt", "asked", "finish_reason", "refusal", "filtered", "samples")
    judged = [pa.field(name, text) for name in names]
    places = [pa.field(name, pa.int64()) for name in ("line", "read_at")]
    return pa.schema([*example_schema(), *judged, *places])


def _table(
    items: Sequence[_Item],
    examples: Sequence[Example],
    refusals: Sequence[str | None],
    texts: Sequence[str],
    filtered: Sequence[str | None],
    samples: Sequence[str | None],
) -> pa.Table:
    import pyarrow as pa

    names = [each.name for each in example_schema()]
    rows = zip(*map(attrgetter(*names), examples), strict=True) if examples else [[] for _ in names]
    columns: dict[str, Any] = dict(zip(names, rows, strict=True))
    columns |= {name: _json_texts(columns[name]) for name in JSON_COLUMNS}
    columns |= {
        "prompt": texts,
        "asked": [_asked(example) for example in examples],
        "finish_reason": [each.exchange.finish_reason for each in items],
        "refusal": refusals,
        "filtered": filtered,
        "samples": samples,
        "line": [each.line for each in items],
        "read_at": [each.read_at for each in items],
    }
    schema = spool_schema()
    return pa.table([pa.array(columns[each.name], each.type) for each in schema], schema=schema)


def _json_texts(values: Sequence[Any]) -> list[str]:
    """JSON of each, keys in the log's order; what stands again and again (tools, no metadata) is written once."""
    import orjson

    before, text = object(), ""
    out = []
    for value in values:
        if value is not before and value != before:
            text = orjson.dumps(value).decode()
            before = value
        out.append(text)
    return out


def _asked(example: Example) -> str:
    """The text of the last user turn."""
    return next((str(each.get("content") or "") for each in reversed(example.messages) if each["role"] == "user"), "")


def _filtered(table: pa.Table, filters: Filters, thumbs: Sequence[str | None]) -> tuple[pa.Table, Any, Any, Any]:
    """Reasons of the filters put beside the task's own; masks of rows selected, that teach, and with a thumb down.

    A thumb down keeps a row out too, but later: what people do not want is a preference.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names = {"teacher_text": "answer", "answer": "learnt"}
    batch = table.rename_columns([names.get(each, each) for each in table.column_names])
    filtered = pc.coalesce(table.column("filtered"), selection_reasons(batch, filters))
    taught = pc.if_else(table.column("corrected"), None, answer_reasons(batch, filters))
    refusal = pc.coalesce(table.column("refusal"), taught)
    disliked = pa.array(thumbs, pa.string())
    for name, values in (("filtered", pc.coalesce(filtered, disliked)), ("refusal", refusal)):
        table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
    selected, teaches, down = (pc.is_null(filtered), pc.is_null(refusal), pc.is_valid(disliked))
    return table, *(each.to_numpy(zero_copy_only=False) for each in (selected, teaches, down))


def _rows(
    plan: DescribePlan,
    exchanges: Sequence[Exchange],
    examples: Sequence[Example],
    texts: Sequence[str],
    table: pa.Table,
) -> Any:
    import numpy as np

    rows = np.zeros(len(examples), row_type())
    rows["prompt"] = [hash64(each) for each in texts]
    full, tools = table.column("full_messages").to_pylist(), table.column("tools").to_pylist()
    rows["request"] = [hash64(f"{one}{other}") for one, other in zip(full, tools, strict=True)]
    rows["answer"] = [hash64(each.answer) if each.answer else 0 for each in examples]
    rows["conversation"] = [hash64(each.conversation) for each in examples]
    rows["user"] = [_named(each.metadata.get("user")) for each in examples]
    rows["key"] = [_named(each.metadata.get("key")) for each in examples]
    rows["share"] = shares_of(plan.seed, rows["conversation"])
    rows["time"] = [_seconds(each.time) for each in exchanges]
    rows["turns"] = [len(each.messages) for each in examples]
    rows["length"] = [len(each.answer) for each in examples]
    rows["opinion"] = [bool(each.feedback) for each in exchanges]
    rows["corrected"] = [each.corrected for each in examples]
    rows["recorded"] = [_recorded(plan.recorded, each) for each in exchanges] if plan.recorded else UNRECORDED
    return rows


def _groups(plan: DescribePlan, exchanges: Sequence[Exchange]) -> list[list[int]]:
    """For each row the hash of its key in each group setting, 0 where it has none."""
    return [
        [hash64(key) if (key := group_key(each.to_json(), group)) else 0 for group in plan.groups]
        for each in exchanges
        if plan.groups
    ]


def _seconds(moment: str | None) -> float:
    """Seconds since 1970, NaN where the log gives no (readable) time; a time without a zone is taken as UTC."""
    try:
        found = datetime.fromisoformat(moment) if moment else None
    except ValueError:
        return math.nan
    return math.nan if found is None else (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _named(value: Any) -> int:
    return 0 if value in (None, "") else hash64(str(value))


def _recorded(recorded: Mapping[str, Mapping[str, Any]], exchange: Exchange) -> int:
    named = next((name for name, where in recorded.items() if matches(exchange, where)), None)
    return RECORDED[named or "train"] if "test" in recorded or named else UNRECORDED
