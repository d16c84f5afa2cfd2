"""What a dataset folder holds, judged against the truth of the log it was made from. The only reader of its layout.

In:  the folder (splits, sealed test split, rejections, manifest), the traffic and its truth.
Out: shares of what was planted that was found, and of what was folded that is a repeat indeed.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .traffic import Planted, Traffic, jaccard, prompt_grams

Json = dict[str, Any]
SPLITS = {"train": "train.parquet", "validation": "validation.parquet", "test": "sealed/test.parquet"}
REPEAT = re.compile(r"duplicate of (\S+)")
ALIKE = 0.88  # from here on a folded pair that nobody planted is alike all the same (a reader may fold text otherwise)
_MIX = 0x9E3779B97F4A7C15
_BITS = 24


def read_truth(path: Path) -> list[Planted]:
    """The planted lines of a log."""
    import pyarrow.parquet as pq

    return [Planted(**each) for each in pq.read_table(path).to_pylist()]


@dataclass(frozen=True)
class Outcome:
    """Rows of a dataset by id: split and cluster of each one kept, step and reason of each one left out."""

    folder: Path
    kept: Mapping[str, tuple[str, int]]
    left_out: Mapping[str, tuple[str, str]]
    damaged_lines: frozenset[int]
    facts: Json


def read_outcome(folder: Path) -> Outcome:
    """Read a dataset folder, ids and verdicts alone."""
    import pyarrow.parquet as pq

    kept = {}
    for split, file in SPLITS.items():
        table = pq.read_table(folder / file, columns=["id", "cluster"])
        pairs = zip(table.column("id").to_pylist(), table.column("cluster").to_pylist(), strict=True)
        kept.update({identity: (split, cluster) for identity, cluster in pairs})
    left_out, damaged = {}, set()
    for row in pq.read_table(folder / "rejections.parquet", columns=["id", "line", "step", "reason"]).to_pylist():
        if row["step"] == "damaged":
            damaged.add(row["line"])
        elif row["id"] is not None:
            left_out[row["id"]] = (row["step"], row["reason"])
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    return Outcome(folder, kept, left_out, frozenset(damaged), facts)


@dataclass
class Judged:
    """Counts of what was planted and found, by kind; shares come of `share`."""

    planted: Counter[str]
    found: Counter[str]

    def share(self, *kinds: str) -> float | None:
        """Found over planted of these kinds together; None where none was planted."""
        planted = sum(self.planted[kind] for kind in kinds)
        return sum(self.found[kind] for kind in kinds) / planted if planted else None


def judge(outcome: Outcome, traffic: Traffic, truth: Sequence[Planted]) -> Judged:
    """Judge repeats (exact, near), personal values (by kind), damaged lines, and answers that teach nothing.

    A repeat is found when it or the line it repeats was folded into the other or into another repeat of it, or, in
    the test split, which keeps all its rows, when both bear one cluster. One of which either line was left out for
    another reason counts as neither planted nor found.
    """
    judged = Judged(Counter(), Counter())
    families = _families(truth)
    values: dict[bytes, str] = {}
    for each in truth:
        if each.kind in ("exact", "near"):
            found = _together(outcome, each, families)
        elif each.kind == "personal":
            assert each.value is not None
            assert each.what is not None
            values[each.value.encode()] = each.what
            continue
        elif each.kind == "damaged":
            found = each.row + 1 in outcome.damaged_lines
        else:
            found = outcome.kept.get(each.id, ("", 0))[0] not in ("train", "validation")
        if found is not None:
            judged.planted[each.kind] += 1
            judged.found[each.kind] += found
    leaked = leaks(_texts(outcome.folder), values)
    judged.planted.update(values.values())
    judged.found.update(what for value, what in values.items() if value not in leaked)
    _judge_folded(outcome, traffic, families, judged)
    return judged


def _families(truth: Iterable[Planted]) -> dict[str, str]:
    """For each line that is a repeat or repeated, the id of the line that was repeated."""
    families = {}
    for each in truth:
        if each.twin_id is not None:
            families[each.id] = families[each.twin_id] = each.twin_id
    return families


def _together(outcome: Outcome, twin: Planted, families: Mapping[str, str]) -> bool | None:
    assert twin.twin_id is not None
    pair = (twin.id, twin.twin_id)
    named = [REPEAT.search(outcome.left_out[each][1]) for each in pair if each in outcome.left_out]
    if any(each and families.get(each[1]) == twin.twin_id for each in named):
        return True
    if any(each is None for each in named):
        return None
    kept = [outcome.kept.get(each) for each in pair]
    return kept[0] is not None and kept[0] == kept[1] and kept[0][0] == "test"


def _judge_folded(outcome: Outcome, traffic: Traffic, families: Mapping[str, str], judged: Judged) -> None:
    """Of the rows folded into another: those whose other is of their family or at least alike."""
    folded = {}
    for identity, (_, reason) in outcome.left_out.items():
        if found := REPEAT.search(reason):
            folded[identity] = found[1]
    strangers = {a: b for a, b in folded.items() if families.get(a, a) != families.get(b, b)}
    judged.planted["folded"] = len(folded)
    judged.found["folded"] = len(folded) - len(strangers)
    if strangers:
        wanted = {*strangers, *strangers.values()}
        rows = {traffic.id(row): row for row in range(traffic.rows) if traffic.id(row) in wanted}
        judged.found["folded"] += sum(
            _alike(traffic, rows[a], rows[b]) for a, b in strangers.items() if a in rows and b in rows
        )


def _alike(traffic: Traffic, a: int, b: int) -> bool:
    prompts = [json.loads(traffic.line(row)[0])["request"]["messages"] for row in (a, b)]
    return jaccard(prompt_grams(prompts[0]), prompt_grams(prompts[1])) >= ALIKE


def core(value: bytes) -> bytes:
    """What must not be left of a value: the middle half of a long one, all but the ends of a short one.

    Eight digits with hyphens, half a telephone number, would be found in one uuid or another of a million.
    """
    return value[len(value) // 4 : len(value) - len(value) // 4] if len(value) >= 24 else value[1:-1]


def leaks(texts: Iterable[bytes], values: Iterable[bytes]) -> set[bytes]:
    """The values of which the core stands in any of the texts (each of at least ten bytes).

    Every eight bytes of text are looked up in a table of the hashes of the cores' first eight; hits are compared.
    """
    import numpy as np

    by_key: dict[int, list[bytes]] = defaultdict(list)
    for value in values:
        by_key[int.from_bytes(core(value)[:8], "little")].append(value)
    table = np.zeros(1 << _BITS, np.bool_)
    keys = np.array(list(by_key), np.uint64)
    table[(keys * np.uint64(_MIX)) >> np.uint64(64 - _BITS)] = True
    found: set[bytes] = set()
    for text in texts:
        for offset in range(min(8, max(0, len(text) - 7))):
            windows = np.frombuffer(text, "<u8", (len(text) - offset) // 8, offset)
            hits = np.flatnonzero(table[(windows * np.uint64(_MIX)) >> np.uint64(64 - _BITS)])
            for at, key in zip((hits * 8 + offset).tolist(), windows[hits].tolist(), strict=True):
                for value in by_key.get(key, ()):
                    if text[at : at + len(core(value))] == core(value):
                        found.add(value)
    return found


def _texts(folder: Path) -> Iterator[bytes]:
    """Every text of every file in the folder: string columns of Parquet files by row group, other files whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        if path.suffix != ".parquet":
            yield path.read_bytes()
            continue
        file = pq.ParquetFile(path)
        strings = [field.name for field in file.schema_arrow if field.type in (pa.string(), pa.large_string())]
        for batch in file.iter_batches(batch_size=20_000, columns=strings):
            for column in batch.columns:
                data = column.buffers()[2]
                yield data.to_pybytes() if data is not None else b""
