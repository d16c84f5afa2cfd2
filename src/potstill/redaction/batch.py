"""Redaction of many exchanges at once: one pass over all of them says which rows need to be looked at."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from potstill.records import Json
from potstill.redaction.redactor import Redactor
from potstill.redaction.rules import URL_SECRET
from potstill.redaction.walk import SAID, Leaf, leaves

# What may stand to the left of a number in JSON text. A number of the JSON itself (`"created":1767600000`) is none.
# What follows a word and a dash may be a date or a version (`gpt-4o-mini-2024-07-18`) unless it is longer.
_LEFT = r'(?:^[:.-]?|[^\w.:-]|[^\w]-|[^"0-9][:.]|[:,\[] ?"[:.]|\\"[:.]|\\[nrtbf]|\\u[0-9a-fA-F]{4})'
_SEPARATOR = r"[ \-()./\x{a0}\x{2010}-\x{2015}]"
_MORE = rf"(?:{_SEPARATOR}{{0,3}}[0-9])"
# To the right: no letter, as in 2026-01-05T08:00, and no further group of a UUID.
_HEX = "[0-9A-Fa-f]"
_RIGHT = (
    rf"(?:$|[^0-9A-Za-z-]|-(?:$|[^0-9A-Za-z]|[G-Zg-z]|(?i:fax|cell|ext)|[A-Fa-f](?:{_HEX}{{0,2}}|{_HEX}{{4,10}})(?:$|[^0-9A-Fa-f]))"
    r"|[xX]| ?(?i:ext))"
)
# Everything that a rule can find contains one of these, in the JSON of an exchange. RE2 reads them in one pass. Counts
# are kept low: each one that a random key walks through makes states, and RE2 begins anew when it has too many.
_SIGNS: tuple[str, ...] = (
    r"[^\s\"\\(<,;:](?:@|%40)[^\s\"\\@]",
    rf"(?:{_LEFT}[0-9]|\w-[0-9]{_MORE}{_MORE}){_MORE}{{6}}{_MORE}*{_RIGHT}",
    r"[0-9]{3}-[0-9]{2}-[0-9]{4}|[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}",
    r"[0-9]:[0-9]{12}",
    r'(?:^|[":\[,{ ])[2-9][0-9]{14,15}(?:[,}\] ]|$)',
    r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]",
    r"[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:|::[0-9A-Fa-f]|[0-9A-Fa-f]::",
    r"(?:^|[^\w-]|\\[nrtbf]|\\u[0-9a-fA-F]{4})[A-Za-z]{2}[0-9]{2}(?: ?[A-Za-z0-9]){5}",
    r"-[A-Za-z]{2}[0-9]{2}(?: ?[A-Za-z0-9]){11}",  # longer than the last group of a UUID
    r"[A-Z]{6}[0-9]{2}[A-Z][0-9]{2}[A-Z][0-9]{3}[A-Z]|[A-Z]{4}[0-9]{6}[HM][A-Z]{5}",
    r"[0-9]{17}X|[0-9]{5}2[AB][0-9]{8}",
    rf"(?i:{URL_SECRET})",
    r"sk-[A-Za-z0-9_-]{6}|[spr]k_(?:live|test)_|gh[pousr]_[A-Za-z0-9]{4}|github_pat_|glpat-|(?:hf|gsk|npm)_[A-Za-z0-9]{4}",
    r"xox[abeprs]-|A(?:KI|SI)A[A-Z0-9]{4}|AIza|ya29\.|GOCSPX-|SG\.[A-Za-z0-9_-]{6}|pypi-|shpat_|dop_v1_|hvs\.|nvapi-|eyJ",
    r"-----BEGIN |Bearer +[A-Za-z0-9._~+/-]{6}",
    r"(?i:secret|token|api_?-?key|access_?-?key|passw(?:or)?d)[\"'\\]*\s{0,2}[:=]\s{0,2}[\"'\\]*[A-Za-z0-9+/_-]{6}",
    r"\\\\u00[2-7]",  # a sign itself, written as an escape in JSON within the JSON
)
SIGN = "|".join(_SIGNS)
CHUNK = 4_096  # suspect rows decoded at a time: bounds memory; each chunk costs RE2 a millisecond to begin with


def redact_batch(exchanges: Any, redactor: Redactor) -> tuple[Any, Counter[str]]:
    """The exchanges (an Arrow array of strings, each the JSON of one) redacted, and the findings by kind.

    A row depends on nothing but itself and the redactor's settings; rows without findings keep every byte.
    The counts are added to `redactor.found` too. Null stays null.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    before = redactor.found.copy()
    suspect = pc.match_substring_regex(exchanges, SIGN) if redactor.names is None else pc.is_valid(exchanges)
    at = pc.indices_nonzero(pc.fill_null(suspect, False)).to_numpy(zero_copy_only=False)
    changed, texts = [], []
    for start in range(0, len(at), CHUNK):
        some = at[start : start + CHUNK]
        with _collector_paused():
            for place, text in _redacted(exchanges.take(pa.array(some)).to_pylist(), redactor):
                changed.append(some[place])
                texts.append(text)
    if changed:
        mask = np.zeros(len(exchanges), bool)
        mask[changed] = True
        exchanges = pc.replace_with_mask(exchanges, pa.array(mask), pa.array(texts, exchanges.type))
    return exchanges, redactor.found - before


def _redacted(lines: list[str], redactor: Redactor) -> Iterator[tuple[int, str]]:
    """Place and new text of each line that redaction changes."""
    import orjson

    rows = [orjson.loads(each) for each in lines]
    for place, (row, found) in enumerate(zip(rows, _suspects(rows, redactor), strict=True)):
        if found and redactor.settle(row, found):
            yield place, orjson.dumps(row).decode()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No cycle is made here, and looking for some among thousands of decoded rows took a quarter of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _suspects(rows: list[Json], redactor: Redactor) -> list[list[Leaf]]:
    """For each row the leaves in which something may be found: again one pass, over all texts of all rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = [leaves(each) for each in rows]
    if redactor.names is not None:
        redactor.prepare(leaf[2] for row in found for leaf in row if leaf[3] & SAID)
        return found
    texts = pa.array([leaf[2] for row in found for leaf in row], pa.large_string())
    may_hold = iter(pc.match_substring_regex(texts, SIGN).to_pylist())
    return [[leaf for leaf in row if next(may_hold)] for row in found]
