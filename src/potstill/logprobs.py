"""What a teacher's service logged of its own answers, token by token: log-probabilities and the best alternatives.

Tokens are kept as bytes: a service's vocabulary is not the student's, and half a character is no text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.dataset import OpenSplit, refuse_sealed
from potstill.errors import DamagedLine
from potstill.records import Json

if TYPE_CHECKING:
    import pyarrow as pa

LOGPROBS = "logprobs.parquet"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token that the teacher wrote, and the tokens it thought likeliest there, natural logarithms."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()

    def candidates(self) -> dict[bytes, float]:
        """Every token whose log-probability is known here, the one that was written among them."""
        return {**dict(self.top), self.token: self.logprob}


@dataclass(frozen=True, slots=True)
class AnswerLogprobs:
    """The tokens of a teacher's answer. `start` is the byte of the joined tokens where the canonical answer begins."""

    id: str
    start: int
    tokens: tuple[TokenLogprobs, ...]

    @property
    def text(self) -> bytes:
        return b"".join(each.token for each in self.tokens)


def read_content(content: object) -> tuple[TokenLogprobs, ...]:
    """`logprobs.content` of a chat completion, checked; raises DamagedLine naming what is wrong.

    Where a service leaves `bytes` out, the token's text stands for itself.
    """
    if not isinstance(content, list) or not content:
        raise DamagedLine(f"logprobs.content: found {type(content).__name__}, expected a list of tokens")
    return tuple(_token(each, f"logprobs.content[{at}]") for at, each in enumerate(content))


def _token(found: object, where: str) -> TokenLogprobs:
    token, logprob = _pair(found, where)
    top = found.get("top_logprobs") or [] if isinstance(found, dict) else []
    if not isinstance(top, list):
        raise DamagedLine(f"{where}.top_logprobs: found {type(top).__name__}, expected a list")
    pairs = (_pair(each, f"{where}.top_logprobs[{at}]") for at, each in enumerate(top))
    return TokenLogprobs(token, logprob, tuple(pairs))


def _pair(found: object, where: str) -> tuple[bytes, float]:
    if not isinstance(found, dict) or not isinstance(found.get("token"), str):
        raise DamagedLine(f"{where}.token: expected text")
    given, logprob = found.get("bytes"), found.get("logprob")
    if not isinstance(logprob, int | float) or not math.isfinite(logprob) or logprob > 1e-3:
        raise DamagedLine(f"{where}.logprob: found {logprob!r}, expected a number of at most 0")
    try:
        token = bytes(given) if isinstance(given, list) else found["token"].encode()
    except (ValueError, TypeError) as fault:
        raise DamagedLine(f"{where}.bytes: {fault}") from None
    return token, min(float(logprob), 0.0)


def schema() -> pa.Schema:
    """The columns of `logprobs.parquet`, a row an answer."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()), ("split", pa.string()), ("start", pa.int32()),
            ("tokens", pa.list_(pa.binary())), ("logprobs", pa.list_(pa.float32())),
            ("top_tokens", pa.list_(pa.list_(pa.binary()))), ("top_logprobs", pa.list_(pa.list_(pa.float32()))),
        ]
    )  # fmt: skip


def as_table(answers: Iterable[AnswerLogprobs], split: OpenSplit) -> pa.Table:
    """The answers of an open split as a table; raises SealedSplit for another."""
    import pyarrow as pa

    refuse_sealed(split)
    rows: list[Json] = [
        {
            "id": each.id,
            "split": split,
            "start": each.start,
            "tokens": [one.token for one in each.tokens],
            "logprobs": [one.logprob for one in each.tokens],
            "top_tokens": [[token for token, _ in one.top] for one in each.tokens],
            "top_logprobs": [[logprob for _, logprob in one.top] for one in each.tokens],
        }
        for each in answers
    ]
    return pa.Table.from_pylist(rows, schema=schema())


def read_logprobs(dataset: Path, split: OpenSplit) -> dict[str, AnswerLogprobs]:
    """What was logged of the answers of an open split, by the example's id; empty where the folder has none."""
    import pyarrow.parquet as pq

    refuse_sealed(split)
    path = dataset / LOGPROBS
    rows = pq.read_table(path, filters=[("split", "=", split)]).to_pylist() if path.is_file() else []
    return {row["id"]: AnswerLogprobs(row["id"], row["start"], _tokens(row)) for row in rows}


def _tokens(row: dict[str, Any]) -> tuple[TokenLogprobs, ...]:
    columns = zip(row["tokens"], row["logprobs"], row["top_tokens"], row["top_logprobs"], strict=True)
    return tuple(
        TokenLogprobs(token, logprob, tuple(zip(tokens, logprobs, strict=True)))
        for token, logprob, tokens, logprobs in columns
    )
