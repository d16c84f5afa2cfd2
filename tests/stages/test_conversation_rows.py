"""Whole conversations in training: the mask covers the assistant's turns, all of them and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.turns import rows_of
from potstill import chat, models
from potstill.contract import Contract
from potstill.dataset import read_examples, write_examples
from potstill.errors import ParityMismatch
from potstill.records import Example, Exchange, Json, Learn
from potstill.stage import Shared
from potstill.tasks import ToolCalls
from tests.stages.datasets import dataset_folder
from tests.stages.tiny_llama import gguf_of, tiny_base
from training import run
from training.batch import Batch, token_scores
from training.objectives.choose import first_objective
from training.objectives.on_policy import OnPolicy
from training.packing import Unit
from training.rows import IGNORED, tokenise

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
REASONING = (  # as Qwen 3 and others do: what stands before </think> goes once the user speaks again
    "{% set newest = namespace(at=0) %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set newest.at = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'].split('</think>')[-1] if loop.index0 < newest.at else message['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN_CALLS = chat.CHATML_CALLS.replace("<tool_call>{", "<tool_call>\\n{").replace("}</tool_call>", "}\\n</tool_call>")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(base: Any) -> Any:
    found = chat.load_tokenizer(base.path)
    found.chat_template = chat.CHATML_CALLS
    return found


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def said(text: str | None, *calls: tuple[str, Json]) -> Json:
    message: Json = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"c{at}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for at, (name, arguments) in enumerate(calls)
        ]
    return message


TALK = [
    {"role": "system", "content": "Be brief."}, user("hello there"), said("Who are you?"), user("Ann"),
    said(None, ("look", {"name": "Ann", "n": 1.5})), {"role": "tool", "tool_call_id": "c0", "content": "gold"},
    said("One moment.", ("look", {}), ("look", {"é": None})), {"role": "tool", "tool_call_id": "c1", "content": "x"},
]  # fmt: skip


def example(messages: list[Json], answer: str, learn: Learn = "conversation", name: str = "e") -> Example:
    return Example(name, "c", messages, messages, answer, answer, answer, tools=TOOLS, learn=learn)


def learnt_texts(tokenizer: Any, row: Any) -> list[str]:
    return [tokenizer.decode(ids) for learnt, ids in row.pieces() if learnt]


def test_mask_decodes_to_every_assistant_turn_with_its_end_and_nothing_else(tokenizer: Any) -> None:
    (row,) = tokenise(tokenizer, [example(TALK, "Done.")], 4096).rows
    assert learnt_texts(tokenizer, row) == [
        "Who are you?<|im_end|>",
        '<tool_call>{"name": "look", "arguments": {"name": "Ann", "n": 1.5}}</tool_call><|im_end|>',
        'One moment.\n<tool_call>{"name": "look", "arguments": {}}</tool_call>\n'
        '<tool_call>{"name": "look", "arguments": {"é": null}}</tool_call><|im_end|>',
        "Done.<|im_end|>",
    ]
    whole = chat.render(tokenizer, [*TALK, said("Done.")], TOOLS, generation=False)
    assert tokenizer.decode(row.token_ids) + "\n" == whole
    assert [label for label in row.labels if label != IGNORED] == [
        token for learnt, ids in row.pieces() for token in ids if learnt
    ]
    assert row.supervised_tokens == sum(label != IGNORED for label in row.labels)


def test_learn_answer_gives_the_rows_that_it_always_gave(tokenizer: Any) -> None:
    (row,) = tokenise(tokenizer, [example(TALK, "Done.", "answer")], 4096).rows
    prompt, answer = chat.prompt_and_completion(tokenizer, TALK, TOOLS, "Done.")
    assert row.token_ids == prompt + answer
    assert row.labels == [IGNORED] * len(prompt) + answer


def test_opening_assistant_turn_is_not_learnt(tokenizer: Any) -> None:
    talk = [said("Hello!"), user("hi"), said("Yes?"), user("bye")]
    (row,) = tokenise(tokenizer, [example(talk, "Bye.")], 4096).rows
    assert learnt_texts(tokenizer, row) == ["Yes?<|im_end|>", "Bye.<|im_end|>"]
    assert row.labels[0] == IGNORED


words = st.text(alphabet="ab é\n{}<>|", min_size=1, max_size=12).map(str.strip).filter(bool)
turn = st.one_of(
    words.map(said),
    st.tuples(st.none() | words, st.lists(st.dictionaries(words, st.integers() | words | st.none()), min_size=1)).map(
        lambda drawn: said(drawn[0], *(("look", each) for each in drawn[1]))
    ),
)


@given(st.lists(st.tuples(words, turn), min_size=1, max_size=5), st.data())
@settings(deadline=None, max_examples=60)
def test_rows_of_every_turn_and_the_whole_row_learn_the_same_tokens_after_the_same_tokens(
    tokenizer: Any, talk: list[tuple[str, Json]], data: st.DataObject
) -> None:
    task, exchanges, messages = ToolCalls(), [], []
    last = len(talk) - 1
    logged = data.draw(st.sets(st.integers(0, last))) | {last}
    for at, (asked, answer) in enumerate(talk):
        messages.append(user(asked))
        if at in logged:
            request = {"messages": list(messages), "tools": TOOLS}
            exchanges.append(Exchange(f"e{at}", request, {"choices": [{"message": answer}]}))
        messages.append(answer)

    def spans(turns: Any) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
        examples = [
            example(row.messages, task.text_of(row.answer), learn, row.id)
            for row, learn in rows_of(exchanges, turns, task)[0]
        ]
        rows = tokenise(tokenizer, examples, 10**6).rows
        return {(tuple(row.token_ids[:a]), tuple(row.token_ids[a:b])) for row in rows for a, b in row.learnt}

    assert spans("every") == spans("whole")
    assert len(spans("every")) == len(talk)


@pytest.mark.parametrize(
    ("template", "earlier", "says"),
    [
        (REASONING, said("<think>hm</think>Hi"), "rewrites earlier turns once messages.* drop earlier reasoning"),
        (chat.CHATML, said(None, ("look", {})), "writes the tool calls of earlier turns .* otherwise"),
        (QWEN_CALLS, said(None, ("look", {})), "writes the tool calls of earlier turns .* otherwise"),
        (chat.CHATML.replace("assistant\\n' }}{% endif", "assistant\\nSure: ' }}{% endif"), said("Hi"), "rewrites"),
    ],
    ids=["drops reasoning", "leaves calls out", "writes calls otherwise", "opens the newest turn otherwise"],
)
def test_template_that_rewrites_history_is_refused_with_the_way_out(
    tokenizer: Any, template: str, earlier: Json, says: str
) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    talk = [user("a"), earlier, user("b")]
    with pytest.raises(ParityMismatch, match=rf"example e: the chat template {says}.*distill\.turns: every"):
        tokenise(other, [example(talk, "Bye.")], 4096)
    assert tokenise(other, [example(talk, "Bye.", "answer")], 4096).rows


def test_rows_of_conversations_pack_as_others_do(tokenizer: Any) -> None:
    rows = tokenise(tokenizer, [example(TALK, "Done."), example([user("a")], "b", "answer")], 4096).rows
    batch = Batch.of([Unit(row.id, (row,)) for row in rows])
    assert batch.targets.tolist() == [label for row in rows for label in row.labels if label != IGNORED]
    following = batch.position_ids[0][batch.learnt_at + 1]
    assert bool((following > 0).all())  # no row's first token is predicted by the row before


def test_chatml_with_calls_renders_in_the_engine_as_in_training(base: Any, tokenizer: Any, tmp_path: Path) -> None:
    from potstill.engine import Engine

    file = gguf_of(base, tmp_path / "tiny.gguf", template=chat.CHATML_CALLS)
    with Engine.start(file, parallel=1, context=512) as engine:
        assert engine.apply_template(TALK, TOOLS) == chat.render(tokenizer, TALK, TOOLS)


def test_dataset_keeps_what_is_learnt_and_reads_folders_from_before(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = [example(TALK, "Done."), example(TALK, "Done.", "answer", "f")]
    write_examples(tmp_path / "train.parquet", rows)
    assert read_examples(tmp_path, "train") == rows
    table = pq.read_table(tmp_path / "train.parquet")
    pq.write_table(table.drop_columns(["learn"]), tmp_path / "train.parquet")
    assert {row.learn for row in read_examples(tmp_path, "train")} == {"answer"}


def test_training_learns_from_whole_conversations(base: Any, tmp_path: Path) -> None:
    talks = [[user(f"q{at}"), said(None, ("look", {"at": at % 3})), user("and?")] for at in range(24)]
    rows = [example(talk, f"It was {at % 3}.", name=f"e{at}") for at, talk in enumerate(talks)]
    folder = dataset_folder(tmp_path / "dataset", rows[:20], rows[20:])
    wanted = run.Settings(chat_template="chatml", learning_rate=0.01, epochs=4, window=256, evals=1, score_rows=0)
    shared = Shared("tiny", {"kind": "tool_calls"}, str(base.path), tmp_path / "work", "")
    out = tmp_path / "adapter"
    out.mkdir()
    learnt = run.main(wanted, shared, {"dataset": folder}, out)["training"]
    assert learnt["loss_last"] < 0.6 * learnt["loss_first"]
    found = chat.load_tokenizer(out / "tokenizer")
    assert found.chat_template == chat.CHATML_CALLS
    tokenised = tokenise(found, rows[:20], 256)
    assert learnt["supervised_tokens_an_epoch"] == tokenised.supervised_tokens
    assert Contract.read(out).max_tokens >= max(row.longest_turn for row in tokenised.rows)


def test_an_on_policy_teacher_reads_a_whole_conversation_as_the_student_that_answers_it(
    base: Any, tmp_path: Path
) -> None:
    """A teacher with the student's weights has nothing to object to, whichever of the two wrote the last answer."""
    talks = [[user(f"q{at}"), said(f"It may be {at}."), user("and?")] for at in range(4)]
    rows = [example(talk, f"It was {at}.", name=f"e{at}") for at, talk in enumerate(talks)]
    folder = dataset_folder(tmp_path / "dataset", rows)
    asked = {"teacher": str(base.path), "prompt": "full", "generated": 1.0, "share": 1.0}
    wanted = run.Settings(chat_template="chatml", window=256, objective="on_policy", distil=asked)
    shared = Shared("tiny", {"kind": "tool_calls"}, str(base.path), tmp_path / "work", "")
    tokenizer = run.load_student_tokenizer(wanted, base.path, rows)
    units = [Unit(row.id, (row,)) for row in tokenise(tokenizer, rows, 256).rows]
    objective = first_objective(wanted, shared, folder, tokenizer, units, [])
    student = models.load_float(base.path)
    objective.prepare(student, units, tmp_path)
    assert isinstance(objective, OnPolicy)
    for learnt in (units, objective.generate(student, units, 0)):
        assert all(len(unit.rows[0].token_ids) > 20 for unit in learnt)
        scores, _ = token_scores(student, Batch.of(learnt), objective.scores)
        assert float(scores.detach().abs().max()) < 1e-3


def test_preview_shows_one_row_with_all_its_spans(base: Any, tmp_path: Path) -> None:
    rows = [example([user("a")], "b", "answer", "short"), example(TALK, "Done.")]
    folder = dataset_folder(tmp_path / "dataset", rows)
    wanted = run.Settings(chat_template="chatml")
    shared = Shared("tiny", {"kind": "tool_calls"}, str(base.path), tmp_path / "work", "")
    shown = run.preview(wanted, shared, {"dataset": folder})
    spans = shown["example"]["spans"]
    assert shown["example"]["id"] == "e"
    assert [each["learnt"] for each in spans] == [False, True] * 4
    assert spans[-1]["text"] == "Done.<|im_end|>"
    assert shown["supervised_tokens_an_epoch"] < shown["tokens_an_epoch"]
