"""Near-duplicate clusters (MinHash and locality-sensitive hashing by `rensa`, every pair checked by exact Jaccard)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from potstill.prompt import joined
from potstill.records import Message, canonical_json

PERMUTATIONS = 128
BANDS = 32  # 4 rows a band: a pair of Jaccard 0.8 is missed with probability (1 - 0.8**4)**32 < 1e-7
SHINGLE = 5
SEED = 20260105
_SPACE = re.compile(r"\W+")


class Clusters:
    """Disjoint sets over row numbers (union by smaller root, so that the result does not depend on order)."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)

    def join_equal(self, keys: Iterable[str]) -> None:
        """Put rows with the same key into one set."""
        first: dict[str, int] = {}
        for row, key in enumerate(keys):
            self.join(first.setdefault(key, row), row)


def near_duplicates(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the row number that stands for its cluster; texts with Jaccard >= threshold share one."""
    from rensa import RMinHash, RMinHashLSH

    clusters = Clusters(len(texts))
    clusters.join_equal(texts)
    rows = [row for row in range(len(texts)) if clusters.find(row) == row]
    sets = [shingles(texts[row]) for row in rows]
    hashes = RMinHash.from_token_sets([sorted(each) for each in sets], PERMUTATIONS, SEED)
    index = RMinHashLSH(threshold, PERMUTATIONS, BANDS)
    index.insert_many(hashes)
    for at, candidates in enumerate(index.query_all(hashes)):
        for other in candidates:
            if other < at and jaccard(sets[at], sets[other]) >= threshold:
                clusters.join(rows[at], rows[other])
    return [clusters.find(row) for row in range(len(texts))]


def shingles(text: str) -> set[str]:
    """Character n-grams of the text in lower case with everything but letters and digits folded to one space."""
    folded = _SPACE.sub(" ", text.casefold()).strip()
    return {folded[at : at + SHINGLE] for at in range(max(1, len(folded) - SHINGLE + 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def prompt_text(messages: Sequence[Message]) -> str:
    """What two prompts are compared by: every turn with its role (tool calls included), no instructions removed."""
    return "\n".join(
        f"{each['role']}: {joined(each.get('content')) or ''}"
        + (canonical_json([call.get("function") for call in each["tool_calls"]]) if each.get("tool_calls") else "")
        for each in messages
    )
