"""A slice of a dataset as a dataset of its own: the same slice for every base, every time.

The sealed test split is not in it: a choice made on test rows would spoil the test. The validation rows are divided
by conversation: training sees some (it keeps the best checkpoint by them), the bases are judged on the others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from potstill.dataset import (
    OpenSplit,
    read_examples,
    read_opinions,
    read_preferences,
    write_examples,
    write_preferences,
)
from potstill.errors import RecipeError
from potstill.manifest import MANIFEST, Input, read_manifest, stage_key, write_manifest
from potstill.preferences import Opinion, Preference
from potstill.records import Example, Json

JUDGED = "judged"  # a folder in the slice, holding rows that training does not open
JUDGED_SHARE = 0.75  # of the validation rows at most; the others choose checkpoints
MOST_WATCHED = 200  # validation rows that training sees: each evaluation reads them all
SPLITS: tuple[OpenSplit, ...] = ("train", "validation")

Judged = TypeVar("Judged", Preference, Opinion)


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """How much to take: training rows at most, validation rows to judge on at most."""

    rows: int = 500
    judged_rows: int = 500


@dataclass(frozen=True, slots=True)
class Divided:
    """Validation rows apart: `watched` by training, `judged` on afterwards. No conversation is in both."""

    watched: list[Example]
    judged: list[Example]


def make_slice(dataset: Path, plan: SlicePlan, task_kind: str, folder: Path) -> Path:
    """The slice's folder under `folder`, made unless it is there; its manifest leads back to the whole dataset.

    Raises RecipeError when the dataset has no validation rows to judge on.
    """
    whole = read_manifest(dataset, "dataset", verify=False)
    source = Input("dataset", str(dataset), whole.digest)
    settings: Json = {"slice": asdict(plan)}
    key = stage_key("slice", settings, [source])
    out = folder / f"dataset-{key}"
    if (out / MANIFEST).is_file():
        read_manifest(out, "dataset")
        return out
    shutil.rmtree(out, ignore_errors=True)
    everything = read_examples(dataset, "train")
    train = take_rows(everything, plan.rows, stratified=task_kind == "classification")
    divided = divide_validation(read_examples(dataset, "validation"), plan.judged_rows)
    if not divided.judged:
        raise RecipeError(
            ["distill.split.validation: found no validation rows, which the bases are judged on; set a share of 0.05"]
        )
    write_examples(out / "train.parquet", train)
    write_examples(out / "validation.parquet", divided.watched)
    write_examples(out / JUDGED / "validation.parquet", divided.judged)
    _slice_preferences(dataset, out, plan.rows)
    counts = {"train": len(train), "validation": len(divided.watched), "judged": len(divided.judged)}
    of = {"dataset": dataset.name, "rows": whole.facts.get("rows"), "times_larger": weight_of(everything, train)}
    facts = {"prompt_rule": whole.facts["prompt_rule"], "rows": counts, "slice_of": of}
    write_manifest(
        out, "dataset", settings_passed=settings, settings_used=settings, inputs=[source], facts=facts, key=key
    )
    return out


def weight_of(whole: Sequence[Example], part: Sequence[Example]) -> float:
    """How many times the part the whole is, in characters that training reads (rows count by their weight)."""

    def characters(rows: Sequence[Example]) -> float:
        return sum(
            max(1, round(each.weight)) * (len(json.dumps(each.messages, ensure_ascii=False)) + len(each.answer))
            for each in rows
        )

    return round(characters(whole) / max(characters(part), 1), 4)


def read_judged(folder: Path) -> list[Example]:
    """The rows of a slice that the bases are judged on."""
    return read_examples(folder / JUDGED, "validation")


def take_rows(examples: Sequence[Example], count: int, *, stratified: bool) -> list[Example]:
    """At most `count` rows in the order of the whole, chosen by the hash of their ids.

    Stratified: every answer has its share of rows (largest remainders), and one at least while there is room.
    """
    if len(examples) <= count:
        return list(examples)
    strata: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        strata[example.answer if stratified else ""].append(example)
    sizes = {name: len(members) for name, members in strata.items()}
    chosen = {
        example.id
        for name, quota in _quotas(sizes, count).items()
        for example in sorted(strata[name], key=lambda each: _rank(each.id))[:quota]
    }
    return [each for each in examples if each.id in chosen]


def _quotas(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Rows of each stratum, `count` in all: one each where that is possible, the rest in proportion."""
    least = 1 if len(sizes) <= count else 0
    room, total = count - least * len(sizes), sum(sizes.values()) - least * len(sizes)
    shares = {name: room * (size - least) / max(total, 1) for name, size in sizes.items()}
    quotas = {name: least + int(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: (int(shares[name]) - shares[name], _rank(name)))
    for name in by_remainder[: count - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def divide_validation(examples: Sequence[Example], judged_rows: int) -> Divided:
    """Conversations in the order of their hash: first those to judge on, then those that training watches."""
    room = min(judged_rows, max(1, int(len(examples) * JUDGED_SHARE)))
    members: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        members[example.conversation].append(example)
    judged: set[str] = set()
    watched: set[str] = set()
    free = MOST_WATCHED
    for name in sorted(members, key=_rank):
        size = len(members[name])
        if size <= room or not judged:
            judged.add(name)
            room -= size
        elif size <= free:
            watched.add(name)
            free -= size
    return Divided(
        [each for each in examples if each.conversation in watched],
        [each for each in examples if each.conversation in judged],
    )


def _slice_preferences(dataset: Path, out: Path, count: int) -> None:
    """Pairs and opinions, for objectives that learn from them; of validation those that training may watch."""
    judged = {each.conversation for each in read_judged(out)}

    def some(found: list[Judged]) -> list[Judged]:
        mine = sorted((each for each in found if each.conversation not in judged), key=lambda each: _rank(each.id))
        return mine[:count]

    pairs = {split: some(read_preferences(dataset, split)) for split in SPLITS}
    opinions = {split: some(read_opinions(dataset, split)) for split in SPLITS}
    if any(pairs.values()) or any(opinions.values()):
        write_preferences(out, pairs, opinions)


def _rank(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
