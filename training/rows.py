"""Examples as token rows: what is not learnt (prompts) and what is (answers, or every assistant turn), packed.

Packing puts whole rows behind each other into blocks of `pack_length` (best fit decreasing, as in Krell et al. 2021);
position ids restart with every row, from which the attention mask keeps the rows apart.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill import chat
from potstill.chat import Span
from potstill.errors import NothingLearned
from potstill.records import Example

IGNORED = -100  # the label that the loss leaves out


@dataclass(frozen=True, slots=True)
class Row:
    """One training row: its example's id, its token ids, and the spans of them that are learnt (in order, apart).

    No span starts at 0: in a block the token before a row belongs to another row, which must not predict it.
    """

    id: str
    token_ids: list[int]
    learnt: tuple[Span, ...]

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
    def longest_turn(self) -> int:
        """Tokens of the longest learnt span."""
        return max((end - start for start, end in self.learnt), default=0)

    def pieces(self) -> list[tuple[bool, list[int]]]:
        """The row cut where learning begins and ends: (learnt, token ids) in order, none empty."""
        out, at = [], 0
        for start, end in self.learnt:
            out += [(False, self.token_ids[at:start]), (True, self.token_ids[start:end])]
            at = end
        return [(learnt, ids) for learnt, ids in [*out, (False, self.token_ids[at:])] if ids]


@dataclass(frozen=True, slots=True)
class Tokenised:
    """Rows that fit, and the ids of those that are longer than the window (left out: half an answer teaches wrong)."""

    rows: list[Row]
    too_long: list[str]

    @property
    def tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)

    @property
    def supervised_tokens(self) -> int:
        return sum(row.supervised_tokens for row in self.rows)


def tokenise(tokenizer: Any, examples: Sequence[Example], window: int, *, repeat: bool) -> Tokenised:
    """Token rows of examples; with `repeat`, a row of weight 3 stands three times. `window` in tokens.

    Raises ParityMismatch for a whole conversation whose earlier turns the chat template rewrites.
    """
    rows, too_long = [], []
    for example in examples:
        row = _row(tokenizer, example)
        if len(row.token_ids) > window:
            too_long.append(example.id)
            continue
        rows += [row] * (max(1, round(example.weight)) if repeat else 1)
    return Tokenised(rows, too_long)


def _row(tokenizer: Any, example: Example) -> Row:
    if example.learn == "conversation":
        whole = chat.conversation(
            tokenizer, example.messages, example.tools, example.answer, name=f"example {example.id}"
        )
        return Row(example.id, whole.token_ids, whole.learnt)
    prompt, answer = chat.prompt_and_completion(tokenizer, example.messages, example.tools, example.answer)
    return Row(example.id, prompt + answer, ((len(prompt), len(prompt) + len(answer)),))


def refuse_nothing_to_learn(tokenised: Tokenised, window: int) -> None:
    """Raise NothingLearned when no answer token would be supervised, before a model is loaded."""
    if tokenised.supervised_tokens == 0:
        raise NothingLearned(
            f"no supervised token: {len(tokenised.rows)} rows fit into train.window {window} and "
            f"{len(tokenised.too_long)} are longer; raise train.window or shorten the prompts"
        )


def pack_length_for(rows: Sequence[Row], window: int) -> int:
    """The block length: twice the longest row, in steps of 64, at most the window, at least 128.

    Short blocks keep attention (which grows with the square) cheap; twice the longest still packs to over 95 %.
    """
    longest = max(len(row.token_ids) for row in rows)
    return min(max(128, -(-2 * longest // 64) * 64), max(window, -(-longest // 64) * 64))


def pack(rows: Sequence[Row], length: int) -> list[list[Row]]:
    """Rows put into blocks of `length` tokens: longest first, each into the fullest block that still takes it."""
    blocks: list[list[Row]] = []
    room: list[tuple[int, int]] = []  # (tokens free, block), kept sorted
    for row in sorted(rows, key=lambda each: -len(each.token_ids)):
        need = len(row.token_ids)
        at = bisect_left(room, (need, -1))
        if at == len(room):
            blocks.append([row])
            free, block = length - need, len(blocks) - 1
        else:
            free, block = room.pop(at)
            blocks[block].append(row)
            free -= need
        insort(room, (free, block))
    return blocks


def block_columns(block: Sequence[Row], length: int, pad: int) -> dict[str, list[int]]:
    """`input_ids`, `labels` and `position_ids` of one block, each `length` long; padding is a row of its own."""
    ids = [token for row in block for token in row.token_ids]
    labels = [label for row in block for label in row.labels]
    positions = [at for row in block for at in range(len(row.token_ids))]
    rest = length - len(ids)
    return {
        "input_ids": ids + [pad] * rest,
        "labels": labels + [IGNORED] * rest,
        "position_ids": positions + list(range(rest)),
    }


def make_blocks(rows: Sequence[Row], length: int, seed: int) -> list[list[Row]]:
    """Blocks in shuffled order. Rows are shuffled within windows before packing so that like lengths do not clump."""
    shuffler = random.Random(seed)
    order = list(rows)
    shuffler.shuffle(order)
    packed: list[list[Row]] = []
    step = 4096
    for start in range(0, len(order), step):
        packed += pack(order[start : start + step], length)
    shuffler.shuffle(packed)
    return packed
