"""How sure a model was of an answer, from the log-probabilities of its tokens (OpenAI's `logprobs.content`).

For classification the score is the probability of the label itself: wherever several labels are still possible, the
written token is weighed against the other tokens that lead to a label, which is what the grammar leaves of the model's
choice; a token that only spells out what is decided already costs nothing. For other tasks the score is made of the
probabilities of the tokens: their geometric mean (so that a long answer is no less sure for its length), the least, or
the product. Log-probabilities are the model's own, before a grammar or a temperature touches them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Literal

ScoreKind = Literal["label", "mean", "least", "product"]
TOP = 20  # alternatives asked for at each token: the most that OpenAI's API gives

Pair = tuple[bytes, float]


class LabelScorer:
    """The probabilities of a closed set of labels, from the tokens of an answer that is one of them."""

    def __init__(self, labels: Sequence[str]) -> None:
        pairs = sorted((label.encode(), label) for label in labels)
        self._texts, self._labels = [text for text, _ in pairs], [label for _, label in pairs]

    def probabilities(self, content: Any) -> dict[str, float] | None:
        """Each possible label's probability, the likeliest first; they sum to 1. None where tokens tell none.

        That of the written label is exact, up to what lies outside the alternatives that the engine told; a branch that
        was not taken is shared evenly among the labels in it. A token that leaves more labels possible than the written
        one counts for neither side.
        """
        found: dict[str, float] = {}
        prefix, low, high, reach = b"", 0, len(self._texts), 1.0
        for token in content if isinstance(content, list) else ():
            if high - low == 1:
                break
            written = _pair(token)
            if written is None:
                return None
            branches, chosen = self._branches(prefix, low, high, token, written)
            if chosen is None:
                return None
            total = sum(branches.values())
            for (start, end), mass in branches.items():
                if (start, end) != chosen:
                    self._share(found, start, end, reach * mass / total)
            reach *= branches[chosen] / total
            prefix = (prefix + written[0]).lstrip()
            low, high = chosen
        if high == low or high - low == len(self._texts):
            return None
        if prefix.rstrip() == self._texts[low]:  # it ended here, where longer labels go on
            high = low + 1
        self._share(found, low, high, reach)
        return dict(sorted(found.items(), key=lambda each: -each[1]))

    def _branches(
        self, prefix: bytes, low: int, high: int, token: Any, written: Pair
    ) -> tuple[dict[tuple[int, int], float], tuple[int, int] | None]:
        """The probability of each range of labels that a next token would lead to, and the range of the written one."""
        alternatives = {written[0]: written[1]}
        for each in token.get("top_logprobs") or ():
            pair = _pair(each)
            if pair is not None:
                alternatives.setdefault(*pair)
        masses: dict[tuple[int, int], float] = {}
        for text, logprob in alternatives.items():
            span = self._span((prefix + text).lstrip(), low, high, text)
            if span is not None:
                masses[span] = masses.get(span, 0.0) + math.exp(logprob)
        chosen = self._span((prefix + written[0]).lstrip(), low, high, written[0])
        if chosen is None or not masses[chosen]:
            return {}, None
        return _disjoint(masses, chosen), chosen

    def _span(self, text: bytes, low: int, high: int, token: bytes) -> tuple[int, int] | None:
        """Where the labels stand that begin so; that label alone where an empty token ends it."""
        if not token.strip():
            whole = text.rstrip()
            at = bisect_left(self._texts, whole, low, high)
            if whole and at < high and self._texts[at] == whole:
                return at, at + 1
            return None
        start = bisect_left(self._texts, text, low, high)
        if start == high or not self._texts[start].startswith(text):
            return None
        return start, bisect_left(self._texts, text + b"\xff", start, high)

    def _share(self, found: dict[str, float], start: int, end: int, mass: float) -> None:
        for at in range(start, end):
            found[self._labels[at]] = found.get(self._labels[at], 0.0) + mass / (end - start)


def _disjoint(masses: dict[tuple[int, int], float], chosen: tuple[int, int]) -> dict[tuple[int, int], float]:
    """Ranges within the chosen one count for it, ranges around it for nothing; the rest stand apart."""
    apart: dict[tuple[int, int], float] = {}
    for (start, end), mass in masses.items():
        if chosen[0] <= start and end <= chosen[1]:
            apart[chosen] = apart.get(chosen, 0.0) + mass
        elif end <= chosen[0] or chosen[1] <= start:
            apart[start, end] = apart.get((start, end), 0.0) + mass
    return apart


def sequence_score(content: Any, kind: ScoreKind) -> float | None:
    """The geometric mean, the least or the product of the tokens' probabilities; None where they are not all told."""
    pairs = [_pair(each) for each in content] if isinstance(content, list) else []
    known = [each[1] for each in pairs if each is not None]
    if not known or len(known) != len(pairs):
        return None
    if kind == "least":
        return math.exp(min(known))
    return math.exp(sum(known) / (len(known) if kind == "mean" else 1))


def _pair(found: Any) -> Pair | None:
    """A token as bytes with its log-probability; None where either is missing or no number."""
    if not isinstance(found, dict):
        return None
    given, logprob = found.get("bytes"), found.get("logprob")
    if not isinstance(logprob, int | float) or math.isnan(logprob):
        return None
    try:
        text = bytes(given) if isinstance(given, list) else str(found.get("token", "")).encode()
    except (ValueError, TypeError):
        return None
    return text, min(float(logprob), 0.0)
