"""What people prefer: pairs of answers for DPO and single opinions for KTO, as records and as rows for TRL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from potstill import chat
from potstill.records import Json, Message

PreferenceSource = Literal["correction", "thumbs", "regenerated"]


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt, as the student sees it, with an answer that is preferred to another.

    `chosen` is the canonical text of a valid answer; `rejected` that of another, or the raw text of an invalid one.
    """

    id: str
    conversation: str
    messages: list[Message]
    chosen: str
    rejected: str
    source: PreferenceSource
    tools: list[Json] = field(default_factory=list)
    metadata: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opinion:
    """One prompt, as the student sees it, with an answer that is wanted or not. A wanted one is valid and canonical."""

    id: str
    conversation: str
    messages: list[Message]
    answer: str
    desirable: bool
    source: PreferenceSource
    tools: list[Json] = field(default_factory=list)
    metadata: Json = field(default_factory=dict)


def as_dpo_row(preference: Preference) -> Json:
    """A row of TRL's DPOTrainer: `prompt`, `chosen` and `rejected` as lists of messages (and `tools`, where there are).

    An answer is one message with the text that the student learns to write, tool calls included, so that the template
    cannot write it in another form. See "Dataset formats" in TRL's documentation (conversational, preference).
    Rows whose history calls tools must not go through an Arrow table as they are: it gives every call the arguments of
    all others, as nulls.
    """
    return _prompt(preference.messages, preference.tools) | {
        "chosen": [_answer(preference.chosen)],
        "rejected": [_answer(preference.rejected)],
    }


def as_kto_row(opinion: Opinion) -> Json:
    """A row of TRL's KTOTrainer: `prompt`, `completion` and `label` (true: wanted)."""
    return _prompt(opinion.messages, opinion.tools) | {
        "completion": [_answer(opinion.answer)],
        "label": opinion.desirable,
    }


def _prompt(messages: list[Message], tools: list[Json]) -> Json:
    return {"prompt": chat.plain(messages)} | ({"tools": tools} if tools else {})


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}
