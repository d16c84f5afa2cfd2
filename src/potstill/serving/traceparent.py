"""The trace that a request belongs to, handed to every server that is asked for it (W3C Trace Context, level 2)."""

from __future__ import annotations

import random
import re
from contextvars import ContextVar
from dataclasses import dataclass, field

# Header lines of the requests that the running task sends; "" where nothing is traced.
TRACE_LINES: ContextVar[str] = ContextVar("potstill_trace_lines", default="")
_HEADER = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_STATE = re.compile(r"[\x20-\x7e]{0,512}")
_draw = random.SystemRandom()
_RATIO = 1 << 56


@dataclass(slots=True)
class Trace:
    """`span` is the request's own, `parent` the client's (0: none); `steps` are (name, moment, began, seconds)."""

    trace: int
    span: int
    parent: int
    sampled: bool
    state: str = ""
    steps: list[tuple[str, str, float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, traceparent: str, tracestate: str, share: float, ids: random.Random = _draw) -> Trace:
        """The client's trace with its own decision about sampling, or a new one, of which a share is sampled."""
        found = _HEADER.fullmatch(traceparent.strip())
        if found and int(found[1], 16) and int(found[2], 16):
            state = tracestate if _STATE.fullmatch(tracestate) else ""
            return cls(
                int(found[1], 16), ids.getrandbits(64) or 1, int(found[2], 16), bool(int(found[3], 16) & 1), state
            )
        trace = ids.getrandbits(128) or 1
        return cls(trace, ids.getrandbits(64) or 1, 0, trace % _RATIO < share * _RATIO)

    def lines(self) -> str:
        """The header lines for whom we ask."""
        state = f"tracestate: {self.state}\r\n" if self.state else ""
        return f"traceparent: 00-{self.trace:032x}-{self.span:016x}-{int(self.sampled):02x}\r\n{state}"
