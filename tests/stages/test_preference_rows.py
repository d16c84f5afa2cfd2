"""Preference rows in TRL: rendered there, a prompt and an answer are what our own training would make of them."""

from __future__ import annotations

from typing import Any

import pytest

from potstill import chat
from potstill.preferences import Opinion, Preference, as_dpo_row, as_kto_row
from tests.stages.tiny_llama import tiny_base

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALL = '<tool_call>{"name": "look", "arguments": {"at": 1}}</tool_call>'
MESSAGES = [
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": 0}'}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "nothing"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = chat.load_tokenizer(tiny_base(tmp_path_factory.mktemp("base") / "tiny").path)
    found.chat_template = chat.CHATML_CALLS
    return found


def test_trl_renders_our_rows_as_we_do(tokenizer: Any) -> None:
    from datasets import Dataset
    from trl.data_utils import apply_chat_template

    pair = Preference("p", "c", MESSAGES, CALL, "I cannot.", "correction", tools=TOOLS)
    one = Opinion("o", "c", MESSAGES, CALL, True, "thumbs", tools=TOOLS)
    (row,) = Dataset.from_list([as_dpo_row(pair)])
    prompt, end = chat.render(tokenizer, MESSAGES, TOOLS), chat.end_of_turn(tokenizer) + "\n"
    for shown in (as_dpo_row(pair), row):
        rendered = apply_chat_template(shown, tokenizer)
        assert rendered["prompt"] == prompt
        assert rendered["chosen"] == CALL + end
        assert rendered["rejected"] == "I cannot." + end
    assert apply_chat_template(as_kto_row(one), tokenizer) == {
        "prompt": prompt, "completion": CALL + end, "label": True,
    }  # fmt: skip
