"""Human labels of pairs: read back by the texts that were compared, so that a label of an older answer is never used.

A line is {"id", "a", "b", "winner": "a" | "b" | "tie" | null}, with both answers as they were shown; null is not
labelled yet. Several lines on one pair are several people. `write_sheet` makes such a file to fill in, blind: which
answer is whose stands nowhere in it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from potstill.errors import DamagedInput
from potstill.manifest import write_atomically

from .pairs import Pair, drawn

SHEET_ROWS = 100
_TOWARDS_A = {"a": 1.0, "b": 0.0, "tie": 0.5}
Labels = dict[tuple[str, str, str], list[float]]


def read_labels(path: Path) -> Labels:
    """Scores of the first text against the second, by (id, first, second); raises DamagedInput for a damaged line."""
    found: Labels = defaultdict(list)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            identity, a, b, winner = data["id"], data["a"].strip(), data["b"].strip(), data["winner"]
            towards = _TOWARDS_A[winner] if winner is not None else None
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise DamagedInput(
                f'{path}:{number}: expected {{"id", "a", "b", "winner": "a", "b", "tie" or null}}, '
                f"found {line[:80]!r} ({type(fault).__name__}: {fault})"
            ) from fault
        if towards is not None:
            found[identity, a, b].append(towards)
            found[identity, b, a].append(1 - towards)
    return dict(found)


def label_of(pair: Pair, labels: Labels) -> float | None:
    """What people said of exactly these two answers, averaged over them; None when nobody did."""
    given = labels.get((pair.id, pair.mine, pair.other))
    return sum(given) / len(given) if given else None


def write_sheet(path: Path, pairs: Sequence[Pair], seed: int) -> None:
    """A file to label: the first pairs of the drawn order that a judge had to be asked about, sides drawn by lot."""
    lines = []
    for pair in [each for each in pairs if each.known is None][:SHEET_ROWS]:
        swap = drawn(seed, f"side {pair.id}")[0] % 2
        a, b = (pair.other, pair.mine) if swap else (pair.mine, pair.other)
        lines.append({"id": pair.id, "request": list(pair.messages), "a": a, "b": b, "winner": None})
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines)
    write_atomically(path, text.encode())
