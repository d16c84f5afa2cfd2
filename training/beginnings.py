"""Beginnings that rows of a micro-batch have in common, computed once.

Rows of one task begin alike: with the turn's opening, the same system prompt, for the two answers of a pair with the
whole prompt. What a causal model computes of a token depends on the tokens before it alone, so rows form a tree, and
each of its tokens is computed once: projected, gated and normed, while attention still sees whole rows (attention.py).
The loss and its gradient are those of the rows apart, up to rounding (tests hold them together).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .packing import Unit

LEAST = 1 / 32  # of the tokens: for fewer, rows go as they are


@dataclass(frozen=True, slots=True)
class Tree:
    """Rows as a tree of C tokens.

    token_ids, positions [C]: the tokens that are computed, in the order in which the rows bring them, and where they
    stand in their rows; places [T]: the computed token of each token of the rows, one row after the other.
    """

    token_ids: list[int]
    positions: list[int]
    places: tuple[int, ...]

    @property
    def shares(self) -> bool:
        """Whether so many tokens stand in several rows that computing them once pays what it costs."""
        return len(self.places) - len(self.token_ids) >= LEAST * len(self.places) > 0


def tree_of(rows: Iterable[Sequence[int]]) -> Tree:
    """The rows' tokens, those of common beginnings once."""
    token_ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    known: dict[tuple[int, int], int] = {}
    for row in rows:
        before = -1
        for position, token in enumerate(row):
            found = known.setdefault((before, token), len(token_ids))
            if found == len(token_ids):
                token_ids.append(token)
                positions.append(position)
            places.append(found)
            before = found
    return Tree(token_ids, positions, tuple(places))


def computed_tokens(units: Sequence[Unit]) -> int:
    """Tokens that are computed of a micro-batch whose rows share their beginnings."""
    tree = tree_of(row.token_ids for unit in units for row in unit.rows)
    return len(tree.token_ids if tree.shares else tree.places)


def share(inner: Any) -> bool:
    """Let a transformers model compute common beginnings once from now on, where that changes nothing; whether it does.

    On a processor, with the attention of attention.py: other kernels take whole rows. Not with dropout, which would
    fall on all rows of a beginning at once.
    """
    import torch

    plain = not hasattr(inner, "potstill_rows") and next(inner.parameters()).device.type == "cpu"
    drops = any(isinstance(each, torch.nn.Dropout) and each.p > 0 for each in inner.modules())
    inner.potstill_shares = plain and not drops and not _drops(inner.config.get_text_config().to_dict())
    return bool(inner.potstill_shares)


def _drops(config: dict[str, Any]) -> bool:
    """Whether a model's config asks for dropout; attention's, which rows_attention does not do, apart."""
    names = [name for name in config if any(word in name for word in ("dropout", "pdrop", "layerdrop"))]
    return any(isinstance(config[name], int | float) and config[name] > 0 for name in names if "att" not in name)
