"""Pairs of answers to one request, and what a judge's two replies to a pair amount to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from potstill.records import Example, Json, Message, Prediction

from .ask import Judge, Question
from .prompt import Choice, choice_in, judge_messages

WIN, TIE, LOSS = 1.0, 0.5, 0.0
CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Pair:
    """The answer of `candidate` beside the baseline's. `known` is the score of a pair that nobody need be asked about:
    equal answers tie, a valid one beats none."""

    id: str
    cluster: str
    candidate: str
    messages: tuple[Message, ...]
    tools: tuple[Json, ...]
    mine: str
    other: str
    known: float | None = None

    def questions(self, criteria: str | None) -> tuple[Question, Question]:
        """Both orders: the candidate's answer first, then the baseline's."""
        orders = ((self.mine, self.other), (self.other, self.mine))
        forward, backward = (
            Question.of(judge_messages(self.messages, self.tools, first, second, criteria)) for first, second in orders
        )
        return forward, backward


@dataclass(frozen=True, slots=True)
class Opinion:
    """One judge's two replies to a pair. A judge that changes its mind with the order has decided nothing: a tie."""

    forward: Choice | None
    backward: Choice | None

    @property
    def readable(self) -> bool:
        return self.forward is not None and self.backward is not None

    @property
    def score(self) -> float:
        """1 for a win of the candidate, 0 for a loss, else a half."""
        if self.forward == "first" and self.backward == "second":
            return WIN
        return LOSS if self.forward == "second" and self.backward == "first" else TIE

    @property
    def consistent(self) -> bool:
        """Whether both orders gave the same verdict."""
        return self.score != TIE or (self.forward == "tie" and self.backward == "tie")


def opinion_of(judge: Judge, pair: Pair, criteria: str | None) -> Opinion | None:
    """What this judge thinks of the pair; None where one of the orders was not answered."""
    keys = [each.key for each in pair.questions(criteria)]
    if not all(key in judge.replies for key in keys):
        return None
    forward, backward = (choice_in(judge.replies[key].reply) for key in keys)
    return Opinion(forward, backward)


def pairs_of(
    candidate: str,
    baseline: str,
    examples: Sequence[Example],
    predictions: Mapping[str, Sequence[Prediction]],
    seed: int,
) -> list[Pair]:
    """One pair a row, whole conversations in an order drawn by `seed`: where money ends early, what was judged is still
    a fair sample."""
    found = []
    for example, mine, other in zip(examples, predictions[candidate], predictions[baseline], strict=True):
        a, b = mine.text.strip(), other.text.strip()
        known = TIE if a == b or not (mine.valid or other.valid) else None
        if known is None and mine.valid != other.valid:
            known = WIN if mine.valid else LOSS
        found.append(
            Pair(
                example.id, example.conversation, candidate, tuple(example.full_messages), tuple(example.tools), a, b,
                known,
            )
        )  # fmt: skip
    return sorted(found, key=lambda each: (drawn(seed, each.cluster), each.id))


def controls_of(
    baseline: str, examples: Sequence[Example], predictions: Mapping[str, Sequence[Prediction]], count: int, seed: int
) -> list[Pair]:
    """Rows whose right answer is plain: the baseline's own beside its answer to another conversation's request."""
    answered = [
        (example, each.text.strip())
        for example, each in zip(examples, predictions[baseline], strict=True)
        if each.valid and each.text.strip()
    ]
    answered.sort(key=lambda each: drawn(seed, each[0].id))
    found: list[Pair] = []
    for at, (example, right) in enumerate(answered):
        if len(found) == count:
            break
        stranger = next(
            (text for other, text in [*answered[at + 1 :], *answered[:at]]
             if other.conversation != example.conversation and text.casefold() != right.casefold()),
            None,
        )  # fmt: skip
        if stranger is not None:
            found.append(
                Pair(
                    example.id, example.conversation, CONTROL, tuple(example.full_messages), tuple(example.tools),
                    right, stranger,
                )
            )  # fmt: skip
    return found


def drawn(seed: int, name: str) -> bytes:
    """A place in an order that depends on nothing but the seed and the name."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
