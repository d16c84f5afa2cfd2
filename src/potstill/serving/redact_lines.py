"""Personal data out of captured lines, many at once, while requests are being answered."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from potstill.records import Json
from potstill.redaction import Redactor

# A version's name stands in every line that it answered, and its @ would make every line look like an address.
_VERSION = re.compile(rb'"model":"[^"\\@]*@[0-9]+"')
_PAUSE_S = 5e-5


@dataclass
class RedactLines:
    """Redacts exchanges and feedback; placeholders are those that `distill` gives under this key."""

    key: bytes = b""
    _redactor: Redactor = field(init=False)

    def __post_init__(self) -> None:
        self._redactor = Redactor(key=self.key)

    def __call__(self, line: Json) -> Json:
        return self._redactor.exchange(line)

    def lines(self, lines: Sequence[bytes]) -> list[bytes]:
        """The lines with every finding replaced, the others untouched.

        Which ones are looked at is told by RE2 for all of them together, outside of the interpreter's lock; after
        each one that is, the lock is left, so that no request waits for more than one line.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        from potstill.redaction.batch import SIGN

        if not lines:
            return []  # asked for once at the start, for what is imported
        texts = pa.array([_VERSION.sub(b'"model":""', each) for each in lines], pa.large_binary()).cast(
            pa.large_string()
        )
        suspect = pc.match_substring_regex(texts, SIGN).to_pylist()
        found = []
        for line, looked_at in zip(lines, suspect, strict=True):
            if looked_at:
                line = orjson.dumps(self._redactor.exchange(orjson.loads(line)))
                time.sleep(_PAUSE_S)
            found.append(line)
        return found
