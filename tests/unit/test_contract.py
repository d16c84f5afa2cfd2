"""Promises of the contract: it reads back as written, and every difference between two is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.contract import CONTRACT, Contract, Golden, differences, first_difference, golden_differences
from potstill.errors import ParityMismatch
from potstill.prompt import Drop, PromptRule, Strip
from potstill.tasks import task_from

RULE = PromptRule((Drop("system", "Be brief."),), (Strip("user", "Message:\n", "\nAnswer."),))
WHOLE = Contract(
    task={"kind": "classification", "labels": ["card", "cash", "Überweisung"]},
    chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    stop=["<|im_end|>"],
    prompt_rule=RULE.to_json(),
    max_tokens=12,
    window=256,
    golden=[Golden([{"role": "user", "content": "hi"}], [], "hi", [1, 2, 3]), Golden([], [{"a": 1}], "", [])],
)


def test_contract_reads_back_as_written(tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    read = Contract.read(tmp_path)
    assert read == WHOLE
    assert read.make_task().describe() == task_from(WHOLE.task).describe()
    assert read.make_prompt_rule() == RULE
    assert [path.name for path in tmp_path.iterdir()] == [CONTRACT]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"golden": [{"text": "x"}]}', '{"golden": [], "more": 1}'])
def test_what_is_no_contract_is_refused_naming_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / CONTRACT).write_text(text)
    with pytest.raises(ParityMismatch, match=r"contract\.json: not a contract"):
        Contract.read(tmp_path)


def test_missing_contract_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParityMismatch, match=r"contract\.json: missing"):
        Contract.read(tmp_path)


def test_contract_without_one_field_is_refused(tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    data = json.loads((tmp_path / CONTRACT).read_text())
    for name in data:
        (tmp_path / CONTRACT).write_text(json.dumps({key: value for key, value in data.items() if key != name}))
        with pytest.raises(ParityMismatch, match=name):
            Contract.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("task", {"kind": "classification", "labels": ["card", "cash"]}),
        ("chat_template", WHOLE.chat_template + "\n"),
        ("stop", ["</s>"]),
        ("prompt_rule", PromptRule().to_json()),
        ("max_tokens", 13),
        ("window", 512),
    ],
)
def test_each_field_that_differs_is_named_alone(name: str, other: Any) -> None:
    change: dict[str, Any] = {name: other}
    (line,) = differences(WHOLE, replace(WHOLE, **change))
    assert line.startswith(f"{name}: at character ")


def test_contract_agrees_with_itself_read_back(tmp_path: Path) -> None:
    WHOLE.write(tmp_path)
    assert differences(WHOLE, Contract.read(tmp_path)) == []


def test_other_golden_ids_are_a_difference() -> None:
    other = replace(WHOLE, golden=[replace(WHOLE.golden[0], token_ids=[1, 2, 4]), WHOLE.golden[1]])
    assert differences(WHOLE, other) == ["golden token ids differ"]


ids = st.lists(st.integers(0, 5), max_size=6)


@given(ids)
def test_golden_prompt_with_other_ids_is_named_with_the_first_difference(found: list[int]) -> None:
    lines = golden_differences(WHOLE, [found, []])
    if found == [1, 2, 3]:
        assert lines == []
    else:
        (line,) = lines
        at = int(line.split("first difference at token ")[1].split(":")[0])
        assert found[:at] == [1, 2, 3][:at]
        assert found[at : at + 1] != [1, 2, 3][at : at + 1]


def test_ids_for_fewer_prompts_than_the_contract_holds_are_no_agreement() -> None:
    with pytest.raises(ValueError, match="shorter"):
        golden_differences(WHOLE, [[1, 2, 3]])


@given(st.text(max_size=60), st.text(max_size=60))
def test_first_difference_stands_where_two_texts_part(expected: str, found: str) -> None:
    at = int(first_difference(expected, found).removeprefix("at character ").split(":")[0])
    assert expected[:at] == found[:at]
    assert expected == found or expected[at : at + 1] != found[at : at + 1]
