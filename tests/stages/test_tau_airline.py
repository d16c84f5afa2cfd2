"""The airline agent's log: only what succeeded is learnt, no task is in two splits, tools and masks are exact."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distillation import run as distill
from distillation.choose import score_refusal
from distillation.groups import Group, group_key
from distillation.turns import rows_of
from potstill import chat
from potstill.dataset import read_examples, read_sealed
from potstill.recipe import load_recipe
from potstill.records import Example, Exchange
from potstill.tasks import ToolCalls
from tests.shared_traffic import ROOT, shared_log
from tests.stages.tiny_llama import tiny_base
from training.rows import tokenise

RECIPE = ROOT / "configs" / "tau_airline" / "cpu.yaml"
SCORES = {"task_success": 1.0}
TASKS = Group(key="metadata.conversation", pattern=r"^(task\d+)-")


@pytest.fixture(scope="module")
def log() -> Path:
    return shared_log("tau-airline.jsonl.gz")


@pytest.fixture(scope="module")
def exchanges(log: Path) -> list[Exchange]:
    with gzip.open(log, "rt", encoding="utf-8") as stream:
        return [Exchange.from_json(json.loads(line)) for line in stream]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(base: Any) -> Any:
    found = chat.load_tokenizer(base.path)
    found.chat_template = chat.choose_template(found, "chatml", tools=True)
    return found


def by_conversation(exchanges: list[Exchange]) -> dict[str, list[Exchange]]:
    found: dict[str, list[Exchange]] = defaultdict(list)
    for each in exchanges:
        found[each.conversation].append(each)
    return found


def task_of(conversation: str) -> str:
    return conversation.partition("-")[0]


def successful(exchanges: list[Exchange]) -> list[Exchange]:
    return [each for each in exchanges if score_refusal(each, SCORES) is None]


def assert_mask_covers_exactly_the_assistants_turns(tokenizer: Any, examples: list[Example]) -> int:
    """For every row, the learnt pieces as text against the turns of its messages; returns how many turns there were."""
    rows = tokenise(tokenizer, examples, 10**6).rows
    turns = 0
    for row, example in zip(rows, examples, strict=True):
        earlier = [ToolCalls().text_of(each) for each in example.messages if each["role"] == "assistant"]
        wanted = [*(earlier if example.learn == "conversation" else []), example.answer]
        found = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for learnt, ids in row.pieces() if learnt]
        assert found == [text + "<|im_end|>" for text in wanted]
        turns += len(found)
    return turns


def test_scores_choose_whole_conversations(exchanges: list[Exchange]) -> None:
    chosen = {each.id for each in successful(exchanges)}
    kept = [group for group in by_conversation(exchanges).values() if {each.id for each in group} & chosen]
    assert len(kept) == 84
    assert sum(len(group) for group in kept) == len(chosen) == 829


def test_group_keys_put_all_trials_of_a_task_together(exchanges: list[Exchange]) -> None:
    tasks = defaultdict(set)
    for each in exchanges:
        tasks[group_key(each.to_json(), TASKS)].add(task_of(each.conversation))
    assert len(tasks) == 50
    assert all(len(names) == 1 for names in tasks.values())


def test_every_turn_is_logged_already_so_none_is_made(exchanges: list[Exchange]) -> None:
    for group in by_conversation(exchanges).values():
        assert [each for each, _ in rows_of(group, "every", ToolCalls())[0]] == group


def test_whole_learns_every_turn_of_a_successful_conversation_in_one_row(
    exchanges: list[Exchange], tokenizer: Any
) -> None:
    examples, logged = [], 0
    for name, group in by_conversation(successful(exchanges)).items():
        ((row, learn),), left_out = rows_of(group, "whole", ToolCalls())
        assert learn == "conversation"
        assert set(left_out) == {each.id for each in group} - {row.id}
        assert json.dumps(row.tools) == json.dumps(group[0].tools)
        answer = ToolCalls().text_of(row.answer)
        examples.append(
            Example(row.id, name, row.messages, row.messages, answer, answer, answer, tools=row.tools, learn=learn)
        )
        logged += len(group)
    assert assert_mask_covers_exactly_the_assistants_turns(tokenizer, examples) == logged == 829


@dataclass(frozen=True)
class Distilled:
    """The dataset that the shipped recipe makes of the log."""

    splits: dict[str, list[Example]]
    exchanges: dict[str, Exchange]


@pytest.fixture(scope="module")
def distilled(log: Path, base: Any, exchanges: list[Exchange], tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    from potstill.commands.recipes import sections
    from potstill.stage_finder import stage_modules

    work = tmp_path_factory.mktemp("work")
    overrides = [f"distill.sources.0.path={log}", f"base_model={base.path}", f"work_dir={work}"]
    recipe = load_recipe(RECIPE, overrides, sections(stage_modules()))
    out = work / "dataset"
    out.mkdir()
    distill.main(recipe.sections["distill"], recipe.shared, {}, out)  # type: ignore[arg-type]
    splits = {"train": read_examples(out, "train"), "validation": read_examples(out, "validation")}
    return Distilled(splits | {"test": read_sealed(out)}, {each.id: each for each in exchanges})


def test_dataset_holds_successful_conversations_alone(distilled: Distilled) -> None:
    good = {each.id for each in successful(list(distilled.exchanges.values()))}
    rows = [row for split in distilled.splits.values() for row in split]
    assert {row.id for row in rows} <= good
    learnt = [row for name in ("train", "validation") for row in distilled.splits[name]]
    assert {row.learn for row in learnt} == {"conversation"}
    assert len({row.conversation for row in learnt}) == len(learnt)


def test_no_task_is_in_two_splits(distilled: Distilled) -> None:
    tasks = {name: {task_of(row.conversation) for row in rows} for name, rows in distilled.splits.items()}
    assert all(tasks.values())
    assert sum(len(names) for names in tasks.values()) == len(set().union(*tasks.values()))


def test_tools_are_the_logs_own_to_the_byte(distilled: Distilled) -> None:
    for rows in distilled.splits.values():
        for row in rows:
            assert json.dumps(row.tools) == json.dumps(distilled.exchanges[row.id].tools)


def test_rendered_rows_learn_exactly_the_assistants_turns(distilled: Distilled, tokenizer: Any) -> None:
    for rows in distilled.splits.values():
        assert assert_mask_covers_exactly_the_assistants_turns(tokenizer, rows) >= len(rows)
    for row in distilled.splits["train"]:
        source = [*distilled.exchanges[row.id].messages, distilled.exchanges[row.id].answer]
        logged = sum(each["role"] == "assistant" for each in source)
        assert sum(each["role"] == "assistant" for each in row.messages) + 1 == logged
