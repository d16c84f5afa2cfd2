"""Promises of splitting: nothing that hangs together is divided, near-duplicates are found, nothing moves later."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.describe import RECORDED, UNRECORDED, row_type
from distillation.duplicates import Places, components, near_duplicates
from distillation.fingerprints import band_keys, bands_for, hash64, jaccard, prompt_text, share_of, signatures
from distillation.runtime import LocalRuntime
from distillation.split import TEST, TRAIN, TWIN, VALIDATION, divide, leakage
from distillation.spool import write_spool
from distillation.verdicts import LEFT_OUT, Verdicts, fold
from potstill.dataset import read_examples
from potstill.errors import RecipeError, SealedSplit
from potstill.records import Json

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


@dataclass(frozen=True)
class Row:
    """What splitting looks at."""

    conversation: str
    user: str | None
    cluster: int
    group: str | None
    recorded: str | None


@st.composite
def logs(draw: st.DrawFn) -> list[Row]:
    """Rows that hang together in all ways: shared conversations, users, clusters, groups, recorded splits."""
    small = st.integers(0, 9)

    def row(at: int) -> Row:
        user, group = draw(st.none() | small), draw(st.none() | st.just(None) | small)
        return Row(
            f"c{draw(small | st.just(100 + at))}",
            None if user is None else f"u{user}",
            draw(small | st.just(100 + at)),
            None if group is None else f"g{group}",
            draw(st.sampled_from(["train", "validation", "test", None])),
        )

    return [row(at) for at in range(draw(st.integers(1, 30)))]


def arrays(log: list[Row], seed: int) -> tuple[Any, Any, list[Any], Any]:
    """Rows of numbers, clusters, group keys and the mask of active rows, as `divide` takes them."""
    rows = np.zeros(len(log), row_type())
    rows["conversation"] = [hash64(each.conversation) for each in log]
    rows["user"] = [hash64(each.user) if each.user else 0 for each in log]
    rows["share"] = [share_of(seed, each.conversation) for each in log]
    rows["recorded"] = [RECORDED[each.recorded] if each.recorded else UNRECORDED for each in log]
    clusters = np.array([each.cluster for each in log], np.int64)
    groups = [np.array([hash64(each.group) if each.group else 0 for each in log], np.uint64)]
    return rows, clusters, groups, np.ones(len(log), bool)


def keys_of(row: Row) -> set[str]:
    named = {f"conversation {row.conversation}", f"cluster {row.cluster}", f"user {row.user}", f"group {row.group}"}
    return named - {"user None", "group None"}


shares = st.sampled_from([0.0, 0.2, 0.5])


@given(logs(), shares, shares, st.integers(0, 3))
def test_split_never_divides_a_conversation_a_user_a_group_or_a_cluster(
    log: list[Row], test: float, validation: float, seed: int
) -> None:
    rows, clusters, groups, active = arrays(log, seed)
    place = divide(rows, clusters, groups, active, test=test, validation=validation)
    assert set(place.tolist()) <= {TRAIN, VALIDATION, TEST, TWIN}, "each row stands in one place"
    for a, b in combinations(range(len(log)), 2):
        if keys_of(log[a]) & keys_of(log[b]) and TWIN not in (place[a], place[b]):
            assert place[a] == place[b]
    assert not any(leakage(rows, clusters, groups, place).values())


@given(logs())
def test_leakage_is_reported_wherever_two_splits_share_a_key(log: list[Row]) -> None:
    rows, clusters, groups, _ = arrays(log, 0)
    place = np.array([at % 3 for at in range(len(log))], np.int8)
    shared = any(
        keys_of(log[a]) & keys_of(log[b]) and place[a] != place[b] for a, b in combinations(range(len(log)), 2)
    )
    assert any(leakage(rows, clusters, groups, place).values()) == shared


@given(logs())
def test_recorded_test_rows_stay_and_their_twins_are_left_out(log: list[Row]) -> None:
    place = divide(*arrays(log, 0), test=0.0, validation=0.2)
    recorded = [at for at, row in enumerate(log) if row.recorded == "test"]
    assert np.flatnonzero(place == TEST).tolist() == recorded
    for at, row in enumerate(log):
        if row.recorded != "test" and any(keys_of(row) & keys_of(log[held]) for held in recorded):
            assert place[at] == TWIN


@given(logs(), logs(), st.integers(0, 3))
def test_new_rows_move_no_row_that_was_there(log: list[Row], more: list[Row], seed: int) -> None:
    """Rows of other conversations, users, groups and clusters, that is: what joins a group joins it where it stands."""
    others = [
        replace(
            each,
            conversation=f"new {each.conversation}",
            user=each.user and f"new {each.user}",
            group=each.group and f"new {each.group}",
            cluster=1000 + each.cluster,
        )
        for each in more
    ]
    before = divide(*arrays(log, seed), test=0.3, validation=0.2)
    after = divide(*arrays([*others, *log], seed), test=0.3, validation=0.2)
    assert after[len(others) :].tolist() == before.tolist()


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


def clusters_of(texts: list[str], threshold: float, folder: Path, block: int) -> list[int]:
    """For each text the smallest row of its cluster, the texts being spooled in blocks of that many rows."""
    starts = tuple(range(0, len(texts), block))
    for at, start in enumerate(starts):
        part = texts[start : start + block]
        np.save(folder / f"bands-{at:010d}.npy", band_keys(signatures(part), threshold))
        write_spool(folder, "rows", at, pa.table({"prompt": part}), mapped=True)
    prompts = np.array([hash64(each) for each in texts], np.uint64)
    with LocalRuntime(1) as runtime:
        bands, _ = bands_for(threshold)
        edges = near_duplicates(
            prompts,
            np.ones(len(texts), bool),
            bands,
            Places(folder, tuple(range(len(starts))), starts),
            threshold,
            runtime,
            Counter(),
        )
    return [int(each) for each in components(len(texts), edges)]


@pytest.mark.parametrize("block", [1000, 17])
def test_near_duplicates_are_exactly_those_that_comparing_every_pair_finds(
    tmp_path_factory: pytest.TempPathFactory, block: int
) -> None:
    draw = random.Random(5)
    texts = [said(at) for at in range(60)]
    for at in range(60):
        words = said(at).split() * 2
        words[draw.randrange(len(words))] = draw.choice(WORDS)
        texts += [" ".join(words), said(at).upper() + "!"] if at % 3 == 0 else [" ".join(words[: 14 + at % 4])]
    texts += ["é" + texts[0], texts[1], "", "ab"]
    for threshold in (0.6, 0.8, 0.9):
        group = list(range(len(texts)))
        for a, b in combinations(range(len(texts)), 2):
            if jaccard(texts[a], texts[b]) >= threshold:
                low, high = sorted((group[a], group[b]))
                group = [low if each == high else each for each in group]
        assert clusters_of(texts, threshold, tmp_path_factory.mktemp("spool"), block) == group
        assert len(set(group)) < len(texts)


def naive_jaccard(a: str, b: str) -> float:
    """Written from the definition: sets of five bytes of the lower-cased text with one space between words."""
    sets = []
    for text in (a, b):
        folded = " ".join(re.sub(r"\W+", " ", text.casefold()).split()).encode().ljust(5, b"\0")
        sets.append({folded[at : at + 5] for at in range(len(folded) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(st.text(max_size=60), st.text(max_size=60))
def test_jaccard_is_that_of_the_shingles_as_sets(a: str, b: str) -> None:
    assert jaccard(a, b) == pytest.approx(naive_jaccard(a, b))
    assert jaccard(a + b, a + " " + b) == pytest.approx(naive_jaccard(a + b, a + " " + b))


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_miss_a_pair_at_the_threshold_less_than_once_in_a_thousand(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert (1 - threshold**rows) ** bands <= 1e-3
    assert bands * rows <= 128


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


def folded(answers: list[str], corrected: list[bool], turns: list[int], most: float = 1) -> Verdicts:
    """One cluster of rows, folded."""
    rows = np.zeros(len(answers), row_type())
    rows["answer"] = [hash64(each) for each in answers]
    rows["corrected"], rows["turns"] = corrected, turns
    verdicts = Verdicts.begin(rows, np.zeros(len(answers), np.int64))
    fold(verdicts, rows, rows["answer"], most=most)
    return verdicts


def test_person_who_corrected_outvotes_the_teacher_and_is_not_outvoted() -> None:
    found = folded(["card", "card", "loan", "cash", "loan"], [False, False, True, True, True], [1] * 5)
    assert np.flatnonzero(found.place != LEFT_OUT).tolist() == [2, 3]


def test_turns_of_one_conversation_are_not_folded_into_each_other() -> None:
    """Each turn's prompt holds the one before it: alike, and yet another question with another answer."""
    found = folded([f"answer {at}" for at in range(6)], [False] * 6, list(range(6)))
    assert not found.left_out().any()


def test_row_that_stays_counts_and_weighs_the_rows_it_stands_for() -> None:
    found = folded(["card"] * 5, [False] * 5, [1] * 5, most=3)
    assert (found.count[0], found.weight[0]) == (5, 3)
    assert found.twin[1:].tolist() == [0] * 4


def test_same_text_in_parts_is_the_same_prompt() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert prompt_text(parts) == prompt_text([{"role": "user", "content": "hello"}])


def test_twin_of_a_test_row_keeps_its_reason_beside_duplicates(whole: Whole) -> None:
    splits = ["test", "train", "train"]
    lines = [exchange(at, metadata={"conversation": f"c{at}", "split": splits[at % 3]}) for at in range(60)]
    lines += [exchange(90, text=said(0), metadata={"conversation": "c90", "split": "train"})]
    lines += [exchange(91, text=said(1), label="cash", metadata={"conversation": "c91", "split": "train"})]
    _, out = whole(lines, split={"test": {"where": {"metadata.split": "test"}}})
    assert {row["id"]: (row["step"], row["reason"].partition(" of")[0]) for row in rejections_of(out)} == {
        "x00090": ("split", "twin"),
        "x00091": ("fold", "exact duplicate"),
    }


def test_newest_rows_are_the_test_and_nothing_older_hangs_together_with_them(whole: Whole) -> None:
    day = "2026-01-{:02d}T08:00:00Z"
    lines = [exchange(at, time=day.format(1 + at % 28)) for at in range(280)]
    lines[0] = exchange(0, time=day.format(1), metadata={"conversation": lines[27]["metadata"]["conversation"]})
    _, out = whole(lines, split={"test": {"newest": 0.25}, "validation": {"newest": 0.25}})
    place = place_of(out)
    days = {name: {at % 28 for at in range(280) if place.get(f"x{at:05d}") == name} for name in set(place.values())}
    assert days["test"] == set(range(21, 28))
    assert days["validation"] == set(range(14, 21))
    assert max(days["train"]) < 14
    assert {row["id"]: row["step"] for row in rejections_of(out)} == {"x00000": "split"}


def test_newest_rows_of_a_log_without_times_are_refused(whole: Whole) -> None:
    with pytest.raises(RecipeError, match="newest needs times"):
        whole([exchange(at, time=None) for at in range(40)], split={"test": {"newest": 0.25}})
