"""Rows to train on, as token ids: Banking77's own, or generated ones with the same lengths; long ones for a GPU.

A row is the ids of its prompt, which is not learnt, and of its completion, which is. Every candidate is given the
same ids, so that no template or tokenizer makes a difference.
"""

from __future__ import annotations

import csv
import json
import os
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT

LABELS = 77
# Tokens of Banking77's prompts (the question alone in ChatML) and labels at these shares of its 10,003 training rows.
SHARES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 1)
PROMPT_TOKENS = (12, 15, 16, 17, 18, 19, 20, 21, 23, 26, 28, 34, 43, 52, 58, 65, 105)
LABEL_TOKENS = (4, 4, 4, 5, 6, 6, 7, 8, 9, 10, 10, 11, 12, 13, 18, 18, 18)
CHAT_MEDIAN, CHAT_SPREAD, CHAT_SHORTEST, CHAT_LONGEST = 220, 0.8, 32, 1024


@dataclass(frozen=True)
class Row:
    """One training row: token ids of the prompt and of the completion."""

    prompt: list[int]
    completion: list[int]

    @property
    def token_ids(self) -> list[int]:
        return self.prompt + self.completion

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def banking77(folder: Path, tokenizer: Any, seed: int) -> list[Row]:
    """The training questions in an order of their own, prompt = the question alone, completion = the label."""
    from potstill import chat

    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        found = [(each["text"], each["category"]) for each in csv.DictReader(file)]
    random.Random(seed).shuffle(found)
    return [
        Row(*chat.prompt_and_completion(tokenizer, [{"role": "user", "content": text}], (), label))
        for text, label in found
    ]


def banking77_folder(given: Path | None) -> Path | None:
    """Where Banking77's train.csv is: as given, in $POTSTILL_DATA, or in shared/data beside the checkout."""
    places = [given] if given else [Path(os.environ.get("POTSTILL_DATA") or ROOT.parent / "shared" / "data")]
    return next((p for place in places for p in (place, place / "banking77") if (p / "train.csv").is_file()), None)


def like_banking77(count: int, vocabulary: int, seed: int) -> list[Row]:
    """Rows of random tokens with Banking77's lengths; three tokens of each prompt tell which label follows."""
    draw = random.Random(seed)
    labels = [_ids(draw, round(_quantile(LABEL_TOKENS, draw.random())), vocabulary) for _ in range(LABELS)]
    rows = []
    for _ in range(count):
        label = draw.randrange(LABELS)
        telling = [(label * 3 + at) % vocabulary for at in range(3)]
        length = round(_quantile(PROMPT_TOKENS, draw.random()))
        rows.append(Row(_ids(draw, length - 3, vocabulary) + telling, labels[label]))
    return rows


def like_chat(count: int, vocabulary: int, seed: int, longest: int = CHAT_LONGEST) -> list[Row]:
    """Rows of random tokens with lengths as of chats: log-normal, median 220 tokens, half of a row is the answer."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = round(CHAT_MEDIAN * 2.718281828 ** draw.gauss(0, CHAT_SPREAD))
        length = max(min(CHAT_SHORTEST, longest), min(length, longest))
        rows.append(Row(_ids(draw, length - length // 2, vocabulary), _ids(draw, length // 2, vocabulary)))
    return rows


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """As JSON, a pair of lists a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([[row.prompt, row.completion] for row in rows]))


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` wrote."""
    return [Row(*pair) for pair in json.loads(path.read_text())]


def _quantile(tokens: Sequence[int], share: float) -> float:
    """The length at this share of the distribution, between two of `SHARES` on a straight line."""
    at = min(bisect_right(SHARES, share), len(SHARES) - 1)
    low, high = SHARES[at - 1], SHARES[at]
    return tokens[at - 1] + (share - low) / (high - low) * (tokens[at] - tokens[at - 1])


def _ids(draw: random.Random, count: int, vocabulary: int) -> list[int]:
    """Random ids, the first ten of the vocabulary, where special tokens stand, left out."""
    return [draw.randrange(min(10, vocabulary // 2), vocabulary) for _ in range(count)]
