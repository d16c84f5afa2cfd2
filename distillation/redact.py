"""Redaction of a whole batch of exchanges: only those that could hold something are opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.recipe import Section
from potstill.redaction import KINDS, Kind, Redactor

if TYPE_CHECKING:
    import pyarrow as pa


class Redact(Section):
    """Kinds of personal data to replace; `region` is where national telephone numbers are read as (ISO 3166)."""

    kinds: tuple[Kind, ...] = KINDS
    region: str = "US"


def redact_exchanges(exchanges: pa.Array, redactor: Redactor) -> pa.Array:
    """Exchanges (canonical JSON) with every finding replaced; what was found is counted in the redactor."""
    import orjson
    import pyarrow as pa

    out = []
    for text in exchanges.to_pylist():
        out.append(orjson.dumps(redactor.exchange(orjson.loads(text))).decode())
    return pa.array(out, pa.string())
