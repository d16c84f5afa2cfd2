"""Personal data out of captured lines, many at once, while requests are being answered."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any

import orjson

from potstill.records import Json
from potstill.redaction import Redactor
from potstill.redaction.batch import SIGN

# A version's name stands in every line that it answered, and its @ would make every line look like an address.
_VERSION = re.compile(rb'"model":"[^"\\@]*@[0-9]+"')
_PAUSE_S = 5e-5
FEW = 32  # lines; Arrow compiles the signs anew at every call, which takes as long as reading some hundred lines


@dataclass
class RedactLines:
    """Redacts exchanges and feedback; placeholders are those that `distill` gives under this key."""

    key: bytes = b""
    _redactor: Redactor = field(init=False)

    def __post_init__(self) -> None:
        self._redactor = Redactor(key=self.key)

    def __call__(self, line: Json) -> Json:
        return self._redactor.exchange(line)

    def warm(self) -> None:
        """Import and compile what the first lines would wait for."""
        _suspect_alone([""])
        _suspect_together([""])

    def lines(self, lines: Sequence[bytes]) -> list[bytes]:
        """The lines with every finding replaced, the others untouched.

        Which ones are looked at is told by RE2, outside of the interpreter's lock; after each one that is, the lock is
        left, so that no request waits for more than one line.
        """
        texts = [_VERSION.sub(b'"model":""', each).decode() for each in lines]
        suspect = _suspect_alone(texts) if len(lines) <= FEW else _suspect_together(texts)
        found = []
        for line, looked_at in zip(lines, suspect, strict=True):
            if looked_at:
                line = orjson.dumps(self._redactor.exchange(orjson.loads(line)))
                time.sleep(_PAUSE_S)
            found.append(line)
        return found


def _suspect_alone(texts: Sequence[str]) -> list[bool]:
    search = _sign().search
    return [search(each) is not None for each in texts]


def _suspect_together(texts: Sequence[str]) -> list[bool]:
    """In one call: a thread that asks for the interpreter's lock after every line is a slow one beside a busy loop."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: list[bool] = pc.match_substring_regex(pa.array(texts, pa.large_string()), SIGN).to_pylist()
    return found


@lru_cache(maxsize=1)
def _sign() -> Any:
    return import_module("re2").compile(SIGN)
