"""Groups that a log names: rows that share one never part, and a setting that cannot work is refused at once."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distillation.duplicates import Clusters
from distillation.groups import Group, group_keys, join_groups
from potstill.records import Json


def exchange(conversation: str | None, **metadata: object) -> Json:
    return {"id": "e", "metadata": {"conversation": conversation} | metadata}


TASKS = Group(key="metadata.conversation", pattern=r"^(task\d+)-")


def test_pattern_catches_what_rows_have_in_common() -> None:
    assert group_keys(exchange("task12-trial3"), [TASKS]) == group_keys(exchange("task12-trial0"), [TASKS])
    assert group_keys(exchange("task12-trial3"), [TASKS]) != group_keys(exchange("task1-trial3"), [TASKS])
    assert group_keys(exchange("chat 7"), [TASKS]) == []
    assert group_keys(exchange(None), [TASKS]) == []


def test_without_a_pattern_the_whole_value_counts_and_settings_never_meet() -> None:
    settings = [Group(key="metadata.shop"), Group(key="metadata.tags.region"), Group(key="metadata.tags")]
    first, second = group_keys(exchange(None, shop=7, tags={"region": "7"}), settings)
    assert first != second
    assert group_keys(exchange(None, shop=0), settings) != []
    assert group_keys(exchange(None, shop=""), settings) == []


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"key": "metadata.conversation", "pattern": "^task("}, "not a regular expression"),
        ({"key": "metadata.conversation", "pattern": "^task"}, "has 0 groups, expected exactly one"),
        ({"key": "metadata.conversation", "pattern": "(a)(b)"}, "has 2 groups, expected exactly one"),
        ({"key": "conversation"}, "beginning with metadata"),
        ({"key": "metadata"}, "dotted key"),
        ({"key": "metadata..a"}, "dotted key"),
        ({"key": "metadata.a", "patern": "(a)"}, "not permitted"),
    ],
)
def test_a_group_that_cannot_work_is_refused_when_the_recipe_is_read(setting: Json, says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("(", r"\(")):
        Group.model_validate(setting)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "x", "y"])), max_size=20))
def test_rows_that_share_a_group_are_in_one_set_and_others_are_not_joined(rows: list[tuple[int, str]]) -> None:
    settings = [TASKS, Group(key="metadata.shop")]
    keys = [group_keys(exchange(f"task{task}-trial{at}", shop=shop), settings) for at, (task, shop) in enumerate(rows)]
    clusters = Clusters(len(rows))
    join_groups(clusters, keys)
    found: dict[str, set[int]] = defaultdict(set)
    for row, names in enumerate(keys):
        for name in names:
            found[name].add(clusters.find(row))
    assert all(len(sets) == 1 for sets in found.values())
    for row, names in enumerate(keys):
        others = {name for at, other in enumerate(keys) for name in other if at != row}
        if others.isdisjoint(names):
            assert clusters.find(row) == row
