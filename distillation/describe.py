"""The second pass: a block's exchanges -> rows of a dataset, with what they are compared, divided and judged by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.dataset import JSON_COLUMNS, example_schema
from potstill.prompt import PromptRule, instructions
from potstill.records import Example, Exchange, Feedback
from potstill.tasks import task_from

from .choose import Corrections, matches, to_example
from .filters import Filters, answer_reasons, selection_reasons
from .fingerprints import band_keys, hash64, prompt_text, share_of, signatures
from .groups import Group, group_key
from .runtime import Clock
from .spool import read_spool, write_spool

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


@dataclass
class Described:
    """One block's row of numbers for each of its rows (`row_type`), and its group keys."""

    block: int
    rows: Any
    groups: list[list[int]]
    counts: Counter[str]
    seconds: Counter[str] = field(default_factory=Counter)


def row_type() -> Any:
    """What the driver knows of a row: 64-bit hashes (0: none), its place in [0, 1) for splitting, and marks."""
    import numpy as np

    return np.dtype(
        [
            ("prompt", "u8"), ("request", "u8"), ("conversation", "u8"), ("user", "u8"), ("key", "u8"),
            ("answer", "u8"), ("source", "u8"), ("share", "f8"), ("turns", "i4"), ("length", "i4"), ("recorded", "i1"),
            ("corrected", "?"), ("teaches", "?"), ("selected", "?"),
        ]
    )  # fmt: skip


def describe(plan: DescribePlan, block: int) -> Described:
    """Make, compare and spool the rows of one block."""
    import numpy as np
    import orjson

    clock, counts = Clock(), Counter[str]()
    read = read_spool(plan.scratch, "read", block)
    task = task_from(dict(plan.task))
    with clock.step("examples"):
        exchanges = [_trusted(orjson.loads(each)) for each in read.column("exchange").to_pylist()]
        bare = [plan.standing.apply(each.messages) for each in exchanges]
        texts = [prompt_text(each) for each in bare]
        prompts = bare if plan.internalise else [each.messages for each in exchanges]
        made = [
            to_example(each, task, prompt, plan.corrections) for each, prompt in zip(exchanges, prompts, strict=True)
        ]
        examples = [example for example, _ in made]
        table = _table(plan, exchanges, examples, [refusal for _, refusal in made], texts, read)
    with clock.step("filter"):
        table, selected, teaches = _filtered(table, plan.filters)
    with clock.step("fingerprint"):
        keys = band_keys(signatures(texts), plan.threshold)
        np.save(plan.scratch / f"bands-{block:010d}.npy", keys)
        rows = _rows(plan, exchanges, examples, texts, table)
        rows["selected"], rows["teaches"] = selected, teaches
    with clock.step("examples"):
        write_spool(plan.scratch, "rows", block, table, mapped=True)
        groups = _groups(plan, exchanges)
    counts["valid"] = int(teaches.sum())
    counts["corrected"] = sum(each.corrected for each in examples)
    return Described(block, rows, groups, counts, clock.seconds)


def _trusted(data: dict[str, Any]) -> Exchange:
    """An exchange that this run wrote itself: nothing to check."""
    opinions = tuple(Feedback(**each) for each in data.pop("feedback"))
    return Exchange(**data, feedback=opinions)


def spool_schema() -> pa.Schema:
    """The columns of a described row: those of an example, and what judges it."""
    import pyarrow as pa

    text = pa.string()
    judged = [(name, text) for name in ("prompt", "asked", "system", "finish_reason", "refusal", "filtered")]
    return pa.schema([*example_schema(), *(pa.field(*each) for each in judged), pa.field("line", pa.int64())])


def _table(
    plan: DescribePlan,
    exchanges: Sequence[Exchange],
    examples: Sequence[Example],
    refusals: Sequence[str | None],
    texts: Sequence[str],
    read: pa.Table,
) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for each in example_schema():
        values = [getattr(example, each.name) for example in examples]
        columns[each.name] = _json_texts(values) if each.name in JSON_COLUMNS else values
    columns |= {
        "prompt": texts,
        "asked": [_asked(example) for example in examples],
        "system": ["\n".join(text for _, text in instructions(each.messages)) for each in exchanges],
        "finish_reason": [each.finish_reason for each in exchanges],
        "refusal": refusals,
        "filtered": [None] * len(examples),
        "line": read.column("line"),
    }
    schema = spool_schema()
    arrays = [columns[each.name] for each in schema]
    return pa.table(
        [
            each if isinstance(each, pa.ChunkedArray) else pa.array(each, wanted.type)
            for each, wanted in zip(arrays, schema, strict=True)
        ],
        schema=schema,
    )


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


def _filtered(table: pa.Table, filters: Filters) -> tuple[pa.Table, Any, Any]:
    """Reasons of the filters put beside the task's own; masks of rows selected, and of rows that teach."""
    import pyarrow.compute as pc

    names = {"teacher_text": "answer", "answer": "learnt"}
    batch = table.rename_columns([names.get(each, each) for each in table.column_names])
    filtered = selection_reasons(batch, filters)
    taught = pc.if_else(table.column("corrected"), None, answer_reasons(batch, filters))
    refusal = pc.coalesce(table.column("refusal"), taught)
    for name, values in (("filtered", filtered), ("refusal", refusal)):
        table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
    selected = pc.is_null(filtered).to_numpy(zero_copy_only=False)
    teaches = pc.is_null(refusal).to_numpy()
    return table, selected, teaches


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
    rows["share"] = [share_of(plan.seed, each.conversation) for each in examples]
    rows["turns"] = [len(each.messages) for each in examples]
    rows["length"] = [len(each.answer) for each in examples]
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


def _named(value: Any) -> int:
    return 0 if value in (None, "") else hash64(str(value))


def _recorded(recorded: Mapping[str, Mapping[str, Any]], exchange: Exchange) -> int:
    named = next((name for name, where in recorded.items() if matches(exchange, where)), None)
    return RECORDED[named or "train"] if "test" in recorded or named else UNRECORDED
