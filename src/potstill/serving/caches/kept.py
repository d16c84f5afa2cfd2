"""A kept answer, and how it is given again: in OpenAI's form under a fresh id, a header says where it is from."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Literal

import orjson

from potstill.serving.answer import head

if TYPE_CHECKING:
    from potstill.serving.call import Call

Outcome = Literal["hit", "miss", "shared", "bypass"]
HEADER = b"x-potstill-cache"
KEY_BYTES = 32
_HEAD = frozenset(("id", "object", "model", "system_fingerprint"))
_NOT_WHOLE = ("length", "content_filter", None)
_PACKED = struct.Struct(f"<{KEY_BYTES}sd")


@dataclass(frozen=True, slots=True)
class Kept:
    """`answer` is JSON of all that is not particular to one call; `at` is when it was given (unix time).

    Bytes, so that no step that changes an answer on its way out changes the kept one.
    """

    answer: bytes
    at: float

    @classmethod
    def of(cls, call: Call) -> Kept:
        return cls(orjson.dumps({key: value for key, value in call.response.items() if key not in _HEAD}), time())

    @property
    def age_s(self) -> float:
        return max(0.0, time() - self.at)

    def packed(self, key: bytes) -> bytes:
        """For a store outside: it holds its own key, so that a store that mixes up its replies gives a miss."""
        return _PACKED.pack(key, self.at) + self.answer

    @classmethod
    def unpacked(cls, key: bytes, data: bytes | str | None) -> Kept | None:
        """What was packed under this very key; None for anything else."""
        if not isinstance(data, bytes) or len(data) < _PACKED.size:
            return None
        found, at = _PACKED.unpack_from(data)
        return cls(data[_PACKED.size :], at) if found == key else None


def worth_keeping(call: Call, truncated: bool) -> bool:
    """Whether the answer that went out is good for others: whole, valid, and from a model rather than from a cache."""
    if not went_out(call) or not call.answered_by or call.answered_by.endswith("_cache"):
        return False
    if call.parsed is None or not call.parsed.valid:
        return False
    reasons = {choice.get("finish_reason") for choice in call.response["choices"]}
    return not reasons & set(_NOT_WHOLE) or (truncated and reasons == {"length"})


def went_out(call: Call) -> bool:
    return call.status == 200 and bool(call.response.get("choices"))


def give(call: Call, kept: Kept, by: str, outcome: Outcome) -> None:
    """Answer the call with what is kept: nothing behind is asked."""
    call.response = head(call, "chat.completion") | orjson.loads(kept.answer)
    task = call.model.served.task
    call.parsed = task.parse(task.text_of(call.response["choices"][0]["message"]), call.body.get("tools") or [])
    call.answered_by = by
    say_outcome(call, outcome)
    call.http.extra.append((b"age", str(int(kept.age_s)).encode()))


def say_outcome(call: Call, outcome: Outcome) -> None:
    """The header; a later cache's word replaces an earlier one's."""
    extra = call.http.extra
    for at, (name, _) in enumerate(extra):
        if name == HEADER:
            extra[at] = (HEADER, outcome.encode())
            return
    extra.append((HEADER, outcome.encode()))
