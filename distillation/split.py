"""Train, validation and test, divided before anything is learnt, never through a conversation or a near-duplicate."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from potstill.records import Example, Json

from .duplicates import Clusters

Split = Literal["train", "validation", "test"]
Reject = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Division:
    """Row numbers of each split, and the rows left out with the reason."""

    train: list[int]
    validation: list[int]
    test: list[int]
    left_out: list[Reject]


def share_of(seed: int, group: str) -> float:
    """A number in [0, 1) that depends on seed and group alone: adding rows moves no other group."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def divide(
    examples: Sequence[Example],
    clusters: Sequence[int],
    recorded: Sequence[Split | None],
    *,
    test: float,
    validation: float,
    seed: int,
) -> Division:
    """Assign each row. `recorded` wins where given; the rest goes by share of its group.

    A group is what hangs together through conversations, users and near-duplicates. Where a recorded split divides
    a group, its rows outside the test split are left out, so that no test row has a twin in training.
    """
    groups = Clusters(len(examples))
    groups.join_equal(f"conversation {each.conversation}" for each in examples)
    users = ["" if each.metadata.get("user") is None else str(each.metadata["user"]) for each in examples]
    groups.join_equal(f"user {user}" if user else f"row {row}" for row, user in enumerate(users))
    groups.join_equal(f"cluster {cluster}" for cluster in clusters)
    members: dict[int, list[int]] = defaultdict(list)
    for row in range(len(examples)):
        members[groups.find(row)].append(row)
    division = Division([], [], [], [])
    for rows in members.values():
        _place(rows, examples, recorded, division, test=test, validation=validation, seed=seed)
    for each in (division.train, division.validation, division.test, division.left_out):
        each.sort()
    return division


def _place(
    rows: Sequence[int],
    examples: Sequence[Example],
    recorded: Sequence[Split | None],
    division: Division,
    *,
    test: float,
    validation: float,
    seed: int,
) -> None:
    wishes = {recorded[row] for row in rows} - {None}
    share = share_of(seed, min(examples[row].conversation for row in rows))
    if "test" in wishes:
        for row in rows:
            if recorded[row] == "test":
                division.test.append(row)
            else:
                division.left_out.append((row, "twin of a test row (same conversation, user or near-duplicate)"))
        return
    if not wishes and share < test:
        division.test.extend(rows)
    elif "validation" in wishes or ("train" not in wishes and share < test + validation):
        division.validation.extend(rows)
    elif wishes == {"train"} and share < validation:
        division.validation.extend(rows)  # a log that records only train and test gets its validation from train
    else:
        division.train.extend(rows)


def representatives(
    examples: Sequence[Example], rows: Sequence[int], clusters: Sequence[int]
) -> tuple[dict[int, float], list[Reject]]:
    """One row a cluster with its own weight, corrected rows first, then the answer most given.

    Prompts of different length in turns are never duplicates: the turns of one long conversation look alike, and each
    asks for another answer. Corrected rows that disagree among themselves are all kept apart by answer: people are
    not voted down.
    """
    by_cluster: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in rows:
        by_cluster[clusters[row], len(examples[row].messages)].append(row)
    kept: dict[int, float] = {}
    left_out: list[Reject] = []
    for members in by_cluster.values():
        corrected = [row for row in members if examples[row].corrected]
        pool = corrected or members
        votes = Counter(examples[row].answer for row in pool)
        winners = votes if corrected else {votes.most_common(1)[0][0]: 1}
        chosen = {answer: next(row for row in pool if examples[row].answer == answer) for answer in winners}
        for row in chosen.values():
            kept[row] = examples[row].weight
        for row in members:
            if row not in kept:
                left_out.append((row, f"near-duplicate of {examples[next(iter(chosen.values()))].id}"))
    return dict(sorted(kept.items())), sorted(left_out)


def leakage(examples: Sequence[Example], clusters: Sequence[int], division: Division) -> Json:
    """What any two splits share, by conversation, user and near-duplicate cluster: all zeros, or the run fails."""
    report: Json = {}
    splits = {"train": division.train, "validation": division.validation, "test": division.test}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for what in ("conversations", "users", "clusters"):
            shared = _keys(what, examples, clusters, splits[a]) & _keys(what, examples, clusters, splits[b])
            report[f"{what} in {a} and {b}"] = len(shared)
    return report


def _keys(what: str, examples: Sequence[Example], clusters: Sequence[int], rows: Sequence[int]) -> set[str]:
    if what == "conversations":
        return {examples[row].conversation for row in rows}
    if what == "users":
        return {
            str(examples[row].metadata["user"]) for row in rows if examples[row].metadata.get("user") not in (None, "")
        }
    return {str(clusters[row]) for row in rows}
