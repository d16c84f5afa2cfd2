"""Promises of splitting: nothing that hangs together is divided, near-duplicates are found, nothing moves later."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.duplicates import jaccard, near_duplicates, prompt_text, shingles
from distillation.split import Division, Split, divide, leakage, representatives
from potstill.dataset import read_examples
from potstill.errors import RecipeError, SealedSplit
from potstill.records import Example, Json

from .mail_log import (
    WORDS,
    Whole,
    exchange,
    place_of,
    rejections_of,
    rows_of,
    said,
)

# Splitting


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Example], list[int], list[Split | None]]:
    """Rows that hang together in all ways: shared conversations, users, clusters, recorded splits."""
    count = draw(st.integers(1, 30))
    small = st.integers(0, 9)
    rows = []
    for at in range(count):
        user = draw(st.none() | small)
        metadata = {} if user is None else {"user": f"u{user}"}
        rows.append(Example(str(at), f"c{draw(small | st.just(100 + at))}", [], [], "a", "a", "a", metadata=metadata))
    clusters = [draw(small | st.just(100 + at)) for at in range(count)]
    recorded: list[Split | None] = draw(
        st.lists(st.sampled_from(["train", "validation", "test", None]), min_size=count, max_size=count)
    )
    return rows, clusters, recorded


def placed(division: Division) -> dict[int, str]:
    found = {row: "left out" for row, _ in division.left_out}
    for name in ("train", "validation", "test"):
        found |= dict.fromkeys(getattr(division, name), name)
    return found


def keys_of(row: int, examples: list[Example], clusters: list[int]) -> set[str]:
    keys = {f"conversation {examples[row].conversation}", f"cluster {clusters[row]}"}
    return keys | ({f"user {examples[row].metadata['user']}"} if examples[row].metadata else set())


shares = st.sampled_from([0.0, 0.2, 0.5])


@given(logs(), shares, shares, st.integers(0, 3))
def test_split_never_divides_a_conversation_a_user_or_a_cluster(
    log: tuple[list[Example], list[int], list[Split | None]], test: float, validation: float, seed: int
) -> None:
    examples, clusters, recorded = log
    division = divide(examples, clusters, recorded, test=test, validation=validation, seed=seed)
    everything = [*division.train, *division.validation, *division.test, *(row for row, _ in division.left_out)]
    assert sorted(everything) == list(range(len(examples))), "each row stands in one place"
    place = placed(division)
    for a, b in combinations(range(len(examples)), 2):
        if keys_of(a, examples, clusters) & keys_of(b, examples, clusters) and "left out" not in (place[a], place[b]):
            assert place[a] == place[b]
    assert not any(leakage(examples, clusters, division).values())


@given(logs())
def test_recorded_test_rows_stay_and_their_twins_are_left_out(
    log: tuple[list[Example], list[int], list[Split | None]],
) -> None:
    examples, clusters, recorded = log
    division = divide(examples, clusters, recorded, test=0.0, validation=0.2, seed=0)
    assert division.test == [row for row, split in enumerate(recorded) if split == "test"]
    held = [keys_of(row, examples, clusters) for row in division.test]
    for row, split in enumerate(recorded):
        if split != "test" and any(keys_of(row, examples, clusters) & keys for keys in held):
            assert placed(division)[row] == "left out"


@given(logs(), logs(), st.integers(0, 3))
def test_new_rows_move_no_row_that_was_there(
    log: tuple[list[Example], list[int], list[Split | None]],
    more: tuple[list[Example], list[int], list[Split | None]],
    seed: int,
) -> None:
    """Rows of other conversations, users and clusters, that is: what joins a group joins it where it stands."""
    examples, clusters, recorded = log
    others = [
        replace(
            each, conversation=f"new {each.conversation}", metadata={k: f"new {v}" for k, v in each.metadata.items()}
        )
        for each in more[0]
    ]
    shares = {"test": 0.3, "validation": 0.2}
    before = divide(examples, clusters, recorded, **shares, seed=seed)
    new_clusters = [1000 + each for each in more[1]]
    after = divide([*others, *examples], [*new_clusters, *clusters], [*more[2], *recorded], **shares, seed=seed)
    found = placed(after)
    assert {row: found[len(others) + row] for row in range(len(examples))} == placed(before)


def test_longer_log_keeps_every_row_in_its_split(whole: Whole) -> None:
    before = place_of(whole([exchange(at) for at in range(60)])[1])
    after = place_of(whole([exchange(at) for at in range(120)])[1])
    assert {identity: after[identity] for identity in before} == before


def test_shares_are_about_as_asked(whole: Whole) -> None:
    facts, _ = whole([exchange(at) for at in range(600)], split={"test": 0.3, "validation": 0.1})
    counts = facts["rows"]
    assert sum(counts.values()) == 600
    assert abs(counts["test"] / 600 - 0.3) < 0.06
    assert abs(counts["validation"] / 600 - 0.1) < 0.04


def test_other_seed_gives_another_split(whole: Whole) -> None:
    lines = [exchange(at) for at in range(60)]
    tests = {
        frozenset(row.id for row in rows_of(whole(lines, split={"test": 0.3, "seed": seed})[1])["test"])
        for seed in (0, 1)
    }
    assert len(tests) == 2


def test_recorded_split_is_kept_and_twins_of_test_rows_are_left_out(whole: Whole) -> None:
    def recorded(at: int) -> Json:
        return {"conversation": f"c{at}", "user": f"u{at}", "split": "test" if at < 10 else "train"}

    lines = [exchange(at, metadata=recorded(at)) for at in range(60)]
    lines.append(exchange(60, text=said(3) + " again", metadata=recorded(60)))  # a near-duplicate of a test row
    lines.append(exchange(61, metadata=recorded(61) | {"user": "u4"}))  # the same user as a test row
    _, out = whole(lines, split={"test": {"where": {"metadata.split": "test"}}, "validation": 0.1})
    rows = rows_of(out)
    assert [row.id for row in rows["test"]] == [f"x{at:05d}" for at in range(10)]
    left_out = {row["id"]: row["reason"] for row in rejections_of(out) if row["step"] == "split"}
    assert set(left_out) == {"x00060", "x00061"}
    assert all(reason.startswith("twin of a test row") for reason in left_out.values())
    assert rows["validation"], "a log that records train and test alone gets its validation rows from train"


def test_split_without_test_or_training_rows_is_refused(whole: Whole) -> None:
    lines = [exchange(at, metadata={"user": "everyone"}) for at in range(20)]
    with pytest.raises(RecipeError, match=r"distill\.split: \d+ training and \d+ test rows; both need some"):
        whole(lines)


def test_users_named_by_their_address_are_still_many_users(whole: Whole) -> None:
    """Redaction must not make one user of all of them: nothing could be split then."""
    _, out = whole([exchange(at, metadata={"user": f"customer{at}@example.org"}) for at in range(60)])
    assert set(place_of(out).values()) == {"train", "validation", "test"} or len(rows_of(out)["test"]) > 5
    users = {row.metadata["user"] for rows in rows_of(out).values() for row in rows}
    assert len(users) == 60
    assert not any("@" in user for user in users)


def test_only_evaluation_can_read_the_test_rows(whole: Whole) -> None:
    _, out = whole([exchange(at) for at in range(40)])
    sealed: Any = "test"
    with pytest.raises(SealedSplit):
        read_examples(out, sealed)


# Near-duplicates


def test_near_duplicates_are_exactly_those_that_comparing_every_pair_finds() -> None:
    draw = random.Random(5)
    texts = [said(at) for at in range(60)]
    for at in range(60):
        words = said(at).split() * 2
        words[draw.randrange(len(words))] = draw.choice(WORDS)
        texts += [" ".join(words), said(at).upper() + "!"] if at % 3 == 0 else [" ".join(words[: 14 + at % 4])]
    for threshold in (0.6, 0.8, 0.9):
        group = list(range(len(texts)))
        sets = [shingles(text) for text in texts]
        for a, b in combinations(range(len(texts)), 2):
            if jaccard(sets[a], sets[b]) >= threshold:
                low, high = sorted((group[a], group[b]))
                group = [low if each == high else each for each in group]
        assert near_duplicates(texts, threshold) == group
        assert len(set(group)) < len(texts)


def test_planted_near_duplicates_are_folded_into_one_row_each(whole: Whole) -> None:
    lines = [exchange(at) for at in range(80)]
    long = {at: " ".join(said(at + k) for k in range(0, 400, 100)) for at in range(10)}
    for at, text in long.items():
        lines.append(exchange(200 + at, "card", text))
        lines.append(exchange(300 + at, "card", text.replace("apple", "APPLE") + "!"))
        lines.append(exchange(400 + at, "cash", text[:-3]))
    _, out = whole(lines)
    place = place_of(out)
    folded = {row["id"]: row["reason"] for row in rejections_of(out)}
    for at in range(10):
        twins = [f"x{base + at:05d}" for base in (200, 300, 400)]
        kept = [each for each in twins if each in place]
        assert len({place[each] for each in kept}) == 1
        if place[kept[0]] != "test":
            assert kept == [twins[0]], "the answer most given, first row"
            assert [folded[each] for each in twins[1:]] == [f"near-duplicate of {twins[0]}"] * 2


def test_person_who_corrected_outvotes_the_teacher_and_is_not_outvoted() -> None:
    def row(identity: str, answer: str, corrected: bool = False) -> Example:
        return Example(identity, identity, [], [], answer, "card", "card", corrected=corrected)

    examples = [
        row("a", "card"),
        row("b", "card"),
        row("c", "loan", True),
        row("d", "cash", True),
        row("e", "loan", True),
    ]
    kept, left_out = representatives(examples, range(5), [0] * 5)
    assert set(kept) == {2, 3}
    assert [at for at, _ in left_out] == [0, 1, 4]


def test_turns_of_one_conversation_are_not_folded_into_each_other() -> None:
    """Each turn's prompt holds the one before it: alike, and yet another question with another answer."""
    turns = [{"role": "user", "content": f"turn {at} of a long talk"} for at in range(6)]
    examples = [
        Example(f"t{at}", "talk", turns[: at + 1], [], f"answer {at}", "card", "card") for at in range(len(turns))
    ]
    kept, left_out = representatives(examples, range(6), [0] * 6)
    assert set(kept) == set(range(6))
    assert left_out == []


def test_same_text_in_parts_is_the_same_prompt() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert prompt_text(parts) == prompt_text([{"role": "user", "content": "hello"}])
