"""Which samples are valid answers, which of them say the same, and what most of them say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.completers import CompletionRequest
from potstill.completers.openai_form import read_chat
from potstill.records import NOT_WHOLE, Json
from potstill.tasks.base import Parsed, Task

from .ledger import Paid


@dataclass(frozen=True, slots=True)
class Candidate:
    """A valid answer that `votes` samples gave; the old answer alone has none."""

    text: str
    value: Any
    votes: int


def read_answer(task: Task, paid: Paid, tools: Sequence[Json]) -> Parsed:
    """The answer in a paid response; invalid too when it was cut off or filtered."""
    if paid.status >= 300:
        return Parsed(reason=f"HTTP {paid.status}")
    try:
        data = json.loads(paid.response)
    except ValueError:
        return Parsed(reason="the response is not JSON")
    completion = read_chat(CompletionRequest("", []), data, 0.0)
    if completion.error is not None or completion.message is None:
        return Parsed(reason=completion.error or "no message")
    if completion.finish_reason in NOT_WHOLE:
        return Parsed(reason=f"finish_reason is {completion.finish_reason}")
    return task.parse(task.text_of(completion.message), tools)


def same(task: Task, first: Any, second: Any) -> bool:
    """Whether the task calls one value right where the other is gold."""
    score = task.score(first, second)
    return bool(score.get("exact", score.get("correct", 0.0)))


def candidates(task: Task, values: Sequence[Any], old: Any | None) -> list[Candidate]:
    """The different answers in the order of their first sample, the old one last unless a sample says the same."""
    firsts: list[Any] = []
    votes: list[int] = []
    for value in values:
        at = next((at for at, first in enumerate(firsts) if same(task, value, first)), None)
        if at is None:
            firsts.append(value)
            votes.append(1)
        else:
            votes[at] += 1
    if old is not None and not any(same(task, old, first) for first in firsts):
        firsts.append(old)
        votes.append(0)
    return [Candidate(task.canonical(value), value, count) for value, count in zip(firsts, votes, strict=True)]


def vote(task: Task, found: Sequence[Candidate], old: Any | None) -> Candidate | None:
    """The answer of most samples (self-consistency, Wang et al. 2022); a tie goes to the old answer, then the first."""
    voted = [each for each in found if each.votes]
    if not voted:
        return None
    most = max(each.votes for each in voted)
    leaders = [each for each in voted if each.votes == most]
    return next((each for each in leaders if old is not None and same(task, old, each.value)), leaders[0])
