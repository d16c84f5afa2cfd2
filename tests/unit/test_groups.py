"""Groups that a log names: rows that share one never part, and a setting that cannot work is refused at once."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from distillation.groups import Group, group_key
from potstill.records import Json


def exchange(conversation: str | None, **metadata: object) -> Json:
    return {"id": "e", "metadata": {"conversation": conversation} | metadata}


TASKS = Group(key="metadata.conversation", pattern=r"^(task\d+)-")


def test_pattern_catches_what_rows_have_in_common() -> None:
    assert group_key(exchange("task12-trial3"), TASKS) == group_key(exchange("task12-trial0"), TASKS) == "task12"
    assert group_key(exchange("task1-trial3"), TASKS) == "task1"
    assert group_key(exchange("chat 7"), TASKS) is None
    assert group_key(exchange(None), TASKS) is None


def test_without_a_pattern_the_whole_value_counts_and_objects_or_nothing_are_no_group() -> None:
    assert group_key(exchange(None, shop=7), Group(key="metadata.shop")) == "7"
    assert group_key(exchange(None, shop=0), Group(key="metadata.shop")) == "0"
    assert group_key(exchange(None, shop=""), Group(key="metadata.shop")) is None
    assert group_key(exchange(None, tags={"region": "x"}), Group(key="metadata.tags")) is None
    assert group_key(exchange(None, tags={"region": "x"}), Group(key="metadata.tags.region")) == "x"


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
