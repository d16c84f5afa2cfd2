"""Which assistant turns of a conversation are learnt: as logged, every one, or the whole conversation once.

A chat client sends the conversation so far with every request, so that a log says the same turns again and again.
What is a prefix of what is told by hashes alone (`Trace`): a pipeline need not hold the texts of a whole log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from potstill.prompt import joined
from potstill.records import NOT_WHOLE, Exchange, Json, Learn, Message, canonical_json
from potstill.tasks import Task

from .opinions import thumb

Turns = Literal["logged", "every", "whole"]
_BYTES = 8


def turn_hashes(messages: Sequence[Message], tools: Sequence[Json] = ()) -> list[int]:
    """For each message a 64-bit number that stands for the conversation up to and with it.

    Equal numbers mean equal beginnings under equal tools. Only what a turn says counts (role, text, calls), not what
    clients and providers add or rename on the way (`refusal: null`, call ids, content null for "").
    """
    running = hashlib.blake2b(canonical_json(list(tools)).encode(), digest_size=_BYTES)
    found = []
    for message in messages:
        said = canonical_json(_said(message)).encode()
        running.update(len(said).to_bytes(8, "big") + said)
        found.append(int.from_bytes(running.digest(), "big"))
    return found


def _said(message: Message) -> list[object]:
    calls = [
        [(call.get("function") or {}).get("name"), (call.get("function") or {}).get("arguments")]
        for call in message.get("tool_calls") or []
    ]
    return [message.get("role"), joined(message.get("content")) or "", calls]


@dataclass(frozen=True, slots=True)
class Trace:
    """What is kept of an exchange to compare it with the others of its conversation (no text).

    `hashes` are those of its messages and, last, its answer; `assistant` the places of assistant turns in `hashes`
    that can be learnt (something stands before them), the answer last; `spoilt` the hashes of turns that may not be
    learnt as they stand: no valid answer of the task, cut off, or (the answer) corrected or with a thumb down.
    """

    id: str
    hashes: tuple[int, ...]
    assistant: tuple[int, ...]
    spoilt: tuple[int, ...] = ()

    def contains(self, other: Trace) -> bool:
        """Whether the other, with its answer, is a beginning of this one (or all of it)."""
        size = len(other.hashes)
        return size <= len(self.hashes) and self.hashes[size - 1] == other.hashes[-1]


def trace(exchange: Exchange, task: Task, checked: dict[int, bool]) -> Trace:
    """The trace of an exchange. `checked` remembers by hash which turns are valid: a conversation repeats its turns."""
    said = [*exchange.messages, {**exchange.answer, "role": "assistant"}]
    hashes = turn_hashes(said, exchange.tools)
    places = tuple(at for at, each in enumerate(said) if each["role"] == "assistant" and at > 0)
    for at in places:
        if hashes[at] not in checked:
            checked[hashes[at]] = task.parse(task.text_of(said[at]), exchange.tools).valid
    spoilt = {hashes[at] for at in places if not checked[hashes[at]]}
    objected = exchange.correction is not None or any(thumb(each) is False for each in exchange.feedback)
    if objected or exchange.finish_reason in NOT_WHOLE:
        spoilt.add(hashes[-1])
    return Trace(exchange.id, tuple(hashes), places, tuple(sorted(spoilt)))


@dataclass(frozen=True, slots=True)
class Whole:
    """What becomes of the exchanges of one conversation: how each kept one is learnt, why the others are left out."""

    learn: dict[str, Learn] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def whole(traces: Sequence[Trace]) -> Whole:
    """The longest exchanges of one conversation, each learnt once with all its turns; their beginnings are left out.

    A branch (an exchange that is no beginning of another, such as a regenerated answer) is kept; where only its
    answer is new, only that is learnt. The exchanges that a spoilt turn stands in stay rows of their own, learnt by
    their answers alone, so that nobody learns it from their history; what was said before it is learnt whole.
    The result does not depend on the order of `traces`.
    """
    found = Whole()
    spoilt = {each for one in traces for each in one.spoilt}
    longest_first = sorted(traces, key=lambda each: (-len(each.hashes), each.id))
    kept: list[Trace] = []
    covered: set[int] = set()
    for each in longest_first:
        if not spoilt.isdisjoint(each.hashes):
            found.learn[each.id] = "answer"
            continue
        longer = next((other for other in kept if other.contains(each)), None)
        if longer is not None:
            found.left_out[each.id] = f"all its turns are learnt in the whole conversation: {longer.id}"
            continue
        kept.append(each)
        own = {each.hashes[at] for at in each.assistant}
        found.learn[each.id] = "answer" if own - {each.hashes[-1]} <= covered else "conversation"
        covered |= own
    return found


def unlogged_turns(traces: Sequence[Trace], refused: Collection[int] = ()) -> dict[str, list[int]]:
    """For the exchanges of one conversation, the places in `messages` of assistant turns that no exchange answered.

    Each turn is named once, under the shortest exchange that it stands in (the smallest id among equals), so that a
    conversation that grows does not rename what was derived before. Turns that are `refused` (by hash) are not named.
    """
    known = {each.hashes[-1] for each in traces}.union(refused)
    found: dict[str, list[int]] = {}
    for each in sorted(traces, key=lambda each: (len(each.hashes), each.id)):
        for at in each.assistant[:-1]:
            if each.hashes[at] not in known:
                known.add(each.hashes[at])
                found.setdefault(each.id, []).append(at)
    return found


def turn_of(exchange: Exchange, at: int) -> Exchange:
    """The exchange that `messages[at]`, an assistant turn, was the answer of; its id is `ID#at`.

    Scores speak of the conversation and come along; corrections, thumbs, usage, cost and latency belong to the logged
    answer and do not.
    """
    answer = exchange.messages[at]
    reason = "tool_calls" if answer.get("tool_calls") else "stop"
    return Exchange(
        id=f"{exchange.id}#{at}",
        request={**exchange.request, "messages": exchange.messages[:at]},
        response={"choices": [{"index": 0, "message": answer, "finish_reason": reason}]},
        time=exchange.time,
        metadata={**exchange.metadata, "conversation": exchange.conversation, "turn_of": exchange.id},
        feedback=tuple(each for each in exchange.feedback if each.kind == "score"),
    )


def rows_of(
    exchanges: Sequence[Exchange], turns: Turns, task: Task
) -> tuple[list[tuple[Exchange, Learn]], dict[str, str]]:
    """The rows of ONE conversation, each with what is learnt of it, and the reason for each id that is left out.

    Logged exchanges keep their order; derived ones stand before the exchange that they were found in.
    """
    if turns == "logged":
        return [(each, "answer") for each in exchanges], {}
    checked: dict[int, bool] = {}
    traces = [trace(each, task, checked) for each in exchanges]
    if turns == "every":
        return with_unlogged(exchanges, unlogged_turns(traces)), {}
    plan = whole(traces)
    return [(each, plan.learn[each.id]) for each in exchanges if each.id in plan.learn], plan.left_out


def with_unlogged(exchanges: Sequence[Exchange], missing: Mapping[str, Sequence[int]]) -> list[tuple[Exchange, Learn]]:
    """The exchanges, and before each the turns that `unlogged_turns` named under its id."""
    rows: list[tuple[Exchange, Learn]] = []
    for each in exchanges:
        rows += [(turn_of(each, at), "answer") for at in missing.get(each.id, ())]
        rows.append((each, "answer"))
    return rows
