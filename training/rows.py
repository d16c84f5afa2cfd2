"""Examples as token rows: what is not learnt (prompts) and what is (answers, or every assistant turn)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from potstill import chat
from potstill.chat import Span
from potstill.errors import NothingLearned
from potstill.records import Example

IGNORED = -100  # the label that the loss leaves out


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: its example's id, its token ids, and the spans of them that are learnt (in order, apart).

    No span starts at 0: the token before a row belongs to another row, which must not predict it.
    With a `rationale_weight` the last span is the rationale: its tokens together weigh so much of the answers' tokens.
    """

    id: str
    token_ids: list[int]
    learnt: tuple[Span, ...]
    weight: float = 1.0
    rationale_weight: float = 0.0

    @property
    def labels(self) -> list[int]:
        found = [IGNORED] * len(self.token_ids)
        for start, end in self.learnt:
            found[start:end] = self.token_ids[start:end]
        return found

    @property
    def supervised_tokens(self) -> int:
        return sum(end - start for start, end in self.learnt)

    @property
    def turns(self) -> tuple[Span, ...]:
        """The learnt spans that are turns of the assistant: all but a rationale."""
        return self.learnt[:-1] if self.rationale_weight else self.learnt

    @property
    def answer(self) -> Span:
        """The span of the answer: the last turn."""
        return self.turns[-1]

    @property
    def turn_tokens(self) -> int:
        return sum(end - start for start, end in self.turns)

    @property
    def longest_turn(self) -> int:
        """Tokens of the longest turn that is learnt: what serving may have to write."""
        return max((end - start for start, end in self.turns), default=0)

    def token_weights(self) -> list[float]:
        """The weight of each learnt token, in order."""
        rationale = self.supervised_tokens - self.turn_tokens
        each = self.weight * self.rationale_weight * self.turn_tokens / max(rationale, 1)
        return [self.weight] * self.turn_tokens + [each] * rationale

    def pieces(self) -> list[tuple[bool, list[int]]]:
        """The row cut where learning begins and ends: (learnt, token ids) in order, none empty."""
        out, at = [], 0
        for start, end in self.learnt:
            out += [(False, self.token_ids[at:start]), (True, self.token_ids[start:end])]
            at = end
        return [(learnt, ids) for learnt, ids in [*out, (False, self.token_ids[at:])] if ids]


@dataclass(frozen=True, slots=True)
class Tokenised:
    """Rows that fit, and the ids of those that are longer than the window, the longest first.

    They are left out: half an answer teaches wrong.
    """

    rows: list[Row]
    too_long: list[str]

    @property
    def tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)

    @property
    def supervised_tokens(self) -> int:
        return sum(row.supervised_tokens for row in self.rows)


def tokenise(tokenizer: Any, examples: Sequence[Example], window: int, rationale_weight: float = 0.0) -> Tokenised:
    """Token rows of examples, each with its example's weight. `window` in tokens.

    With a `rationale_weight` the rationale of an example follows its answer, where the window has room for both: the
    student answers first, and serving stops at the end of the turn, before it. What the student gains is the gradient
    (Hsieh et al. 2023, "Distilling Step-by-Step!", where the loss is answer + weight * rationale, each its own mean).
    Raises ParityMismatch for a whole conversation whose earlier turns the chat template rewrites.
    """
    rows: list[Row] = []
    too_long: list[tuple[int, str]] = []
    for example in examples:
        row = _row(tokenizer, example)
        if len(row.token_ids) > window:
            too_long.append((len(row.token_ids), example.id))
            continue
        if rationale_weight and example.rationale:
            row = _reasoned(tokenizer, row, example.rationale, rationale_weight, window)
        rows.append(row)
    return Tokenised(rows, [name for _, name in sorted(too_long, key=lambda each: -each[0])])


def _row(tokenizer: Any, example: Example) -> Row:
    if example.learn == "conversation":
        whole = chat.conversation(
            tokenizer, example.messages, example.tools, example.answer, name=f"example {example.id}"
        )
        return Row(example.id, whole.token_ids, whole.learnt, example.weight)
    prompt, answer = chat.prompt_and_completion(tokenizer, example.messages, example.tools, example.answer)
    return Row(example.id, prompt + answer, ((len(prompt), len(prompt) + len(answer)),), example.weight)


def _reasoned(tokenizer: Any, row: Row, rationale: str, weight: float, window: int) -> Row:
    """The row with its rationale behind it; as it is when that does not fit: half a reason teaches wrong."""
    gap, said = chat.rationale_after_answer(tokenizer, rationale)
    ids = [*row.token_ids, *gap, *said]
    if len(ids) > window:
        return row
    return replace(row, token_ids=ids, learnt=(*row.learnt, (len(ids) - len(said), len(ids))), rationale_weight=weight)


def refuse_nothing_to_learn(tokenised: Tokenised, window: int) -> None:
    """Raise NothingLearned when no answer token would be supervised, before a model is loaded."""
    if tokenised.supervised_tokens == 0:
        raise NothingLearned(
            f"no supervised token: {len(tokenised.rows)} rows fit into train.window {window} and "
            f"{len(tokenised.too_long)} are longer; raise train.window or shorten the prompts"
        )
