"""Which logged exchanges stand behind each row of a dataset: `members.parquet`, written by `distill`.

One line an exchange that was selected: its id (`member`), the id of the row that stands for it (`row`: itself, the row
that it was folded into as a duplicate, or null where it was left out), that row's `split` (null: none), and 64-bit
hashes of its user (0: none) and conversation as the dataset names them. `lineage` and `forget` read it.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

MEMBERS = "members.parquet"
_DERIVED = re.compile(r"([~#]\d+|:(un)?desirable)$")
_PAIR = re.compile(r"(?:correction|thumbs|regenerated):(.+)$", re.DOTALL)


def members_schema() -> pa.Schema:
    """The columns of `members.parquet`."""
    import pyarrow as pa

    text, number = pa.string(), pa.uint64()
    return pa.schema(
        [("member", text), ("row", text), ("split", text), ("user", number), ("conversation", number)]
    )  # fmt: skip


def hash64(text: str) -> int:
    """A stable 64-bit hash, never 0 (which stands for nothing)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") | 1


def exchange_ids(row: str) -> list[str]:
    """The ids of the exchanges that a row may come from: its own, or without what derived rows put around it.

    `ID~2` is a further answer to ID, `ID#3` a turn of its history, `ID:desirable` an opinion on it,
    `correction:ID` and `regenerated:ID:OTHER` pairs of answers; an id may look so by itself, hence all of them.
    """
    found = [row]
    while _DERIVED.search(found[-1]):
        found.append(_DERIVED.sub("", found[-1]))
    if ":" in row and (pair := _PAIR.match(row)):
        rest = pair.group(1)
        found.append(rest)
        cuts = [at for at, each in enumerate(rest) if each == ":"]
        found += [part for at in cuts for part in (rest[:at], rest[at + 1 :])]
    return found
