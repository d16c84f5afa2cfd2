"""What becomes of every row: its split or why it is left out, its weight, its answer where one was mended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .samples import Samples
from .split import TEST, TRAIN, VALIDATION

OWN_FILTER, OWN_REFUSAL = 0, 1  # reasons that stand in the row itself
LEFT_OUT = 3


@dataclass
class Verdicts:
    """Arrays with an entry a row. `reasons` are (step, reason); a twin (>= 0) is the row that stands for this one."""

    place: Any
    before: Any  # where a row stood when it was left out
    reason: Any
    twin: Any
    weight: Any
    count: Any
    cluster: Any
    whole: Any  # mask of the rows whose every assistant turn is learnt
    answers: dict[int, str] = field(default_factory=dict)
    samples: dict[int, dict[str, float]] = field(default_factory=dict)  # what a teacher asked again said, and how often
    reasons: dict[tuple[str, str], int] = field(default_factory=lambda: {("filter", ""): 0, ("validate", ""): 1})

    @classmethod
    def begin(cls, rows: Any, clusters: Any) -> Verdicts:
        """Every row in training, of weight 1."""
        import numpy as np

        size = len(rows)
        return cls(
            place=np.full(size, TRAIN, np.int8),
            before=np.full(size, TRAIN, np.int8),
            reason=np.full(size, -1, np.int32),
            twin=np.full(size, -1, np.int64),
            weight=np.ones(size),
            count=np.ones(size, np.int64),
            cluster=clusters.astype(np.int64),
            whole=np.zeros(size, bool),
        )

    def left_out(self) -> Any:
        """Mask of the rows left out so far."""
        return self.place == LEFT_OUT

    def leave_out(self, rows: Any, step: str, reason: str, twins: Any = None) -> None:
        """Leave rows (numbers or a mask) out, unless they are already; `twins` stand for them."""
        self._leave_out(rows, self._code(step, reason), twins)

    def leave_out_for(self, rows: Any, own: int) -> None:
        """Leave rows out for the reason that stands in each of them."""
        self._leave_out(rows, own, None)

    def _leave_out(self, rows: Any, code: int, twins: Any) -> None:
        import numpy as np

        numbers = np.flatnonzero(rows) if getattr(rows, "dtype", None) == np.bool_ else np.asarray(rows, np.int64)
        fresh = self.place[numbers] != LEFT_OUT
        numbers = numbers[fresh]
        self.before[numbers] = self.place[numbers]
        self.place[numbers] = LEFT_OUT
        self.reason[numbers] = code
        if twins is not None:
            self.twin[numbers] = np.asarray(twins)[fresh]

    def _code(self, step: str, reason: str) -> int:
        return self.reasons.setdefault((step, reason), len(self.reasons))

    def take_back(self, rows: list[int], step: str) -> None:
        """Put rows that this step left out back into training or validation, where they stood."""
        codes = {code for (name, _), code in self.reasons.items() if name == step}
        for row in rows:
            if self.place[row] == LEFT_OUT and int(self.reason[row]) in codes:
                self.place[row], self.reason[row] = self.before[row], -1

    def standing(self) -> Any:
        """For each row the one that stands for it in the end: itself, or its twin's twin; shape (rows,), int64."""
        import numpy as np

        own = np.arange(len(self.twin))
        found = np.where((self.place == LEFT_OUT) & (self.twin >= 0), self.twin, own)
        while (found[found] != found).any():
            found = found[found]
        return found

    def learning(self) -> Any:
        """Mask of the rows of training and validation."""
        return (self.place == TRAIN) | (self.place == VALIDATION)

    def counts(self) -> dict[str, int]:
        return {
            name: int((self.place == at).sum())
            for name, at in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))
        }


def seen_before(ids: Any) -> Any:
    """Mask of the rows whose id an earlier row has; `ids` is an Arrow array of text."""
    import numpy as np
    import pyarrow.compute as pc

    if len(ids) == pc.count_distinct(ids).as_py():
        return np.zeros(len(ids), bool)
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy() if len(ids) else np.zeros(0, np.int64)
    _, first = np.unique(codes, return_index=True)
    again = np.ones(len(codes), bool)
    again[first] = False
    return again


def fold(verdicts: Verdicts, rows: Any, answers: Any, *, most: float, samples: Samples = "first") -> None:
    """Leave one row a cluster in training and validation: corrected rows first, then the answer most given.

    Prompts of different length in turns are never duplicates: the turns of one long conversation look alike, and each
    asks for another answer. Corrected rows that disagree among themselves are all kept apart by answer: people are
    not voted down. The row that stays carries the number of rows it stands for, as weight too (at most `most`).
    With all `samples`, duplicates are samples of one answer: a row an answer stays, and they share the weight.
    """
    import numpy as np

    numbers = np.flatnonzero(verdicts.learning())
    order = numbers[np.lexsort((numbers, rows["turns"][numbers], verdicts.cluster[numbers]))]
    cluster, turns = verdicts.cluster[order], rows["turns"][order]
    begins = np.ones(len(order), bool)
    begins[1:] = (cluster[1:] != cluster[:-1]) | (turns[1:] != turns[:-1])
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(order))[: len(starts)]
    exact: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for start, end in zip(starts, ends, strict=True):
        if end - start > 1:
            members = order[start:end].tolist()
            how = samples if verdicts.place[members[0]] == TRAIN else "first"
            for row, twin in _folded(members, rows["corrected"], answers, verdicts, most, how):
                kind = "exact" if rows["request"][row] == rows["request"][twin] else "near"
                exact[kind].append((row, twin))
    for kind, words in (("exact", "exact duplicate of"), ("near", "near-duplicate of")):
        if exact[kind]:
            pairs = np.array(exact[kind])
            verdicts.leave_out(pairs[:, 0], "fold", words, pairs[:, 1])


def _folded(
    members: list[int], corrected: Any, answers: Any, verdicts: Verdicts, most: float, samples: Samples
) -> list[tuple[int, int]]:
    people = [row for row in members if corrected[row]]
    pool = people or members
    votes = Counter(int(answers[row]) for row in pool)
    winners: Mapping[int, int] = votes if people or samples == "all" else dict(votes.most_common(1))
    chosen = {answer: next(row for row in pool if answers[row] == answer) for answer in winners}
    first = next(iter(chosen.values()))
    out = []
    for row in members:
        if row not in chosen.values():
            twin = chosen.get(int(answers[row]), first)
            verdicts.count[twin] += 1
            out.append((row, twin))
    if people or len(winners) == 1:
        for row in chosen.values():
            verdicts.weight[row] *= min(verdicts.count[row], most)
        return out
    whole = min(len(members), most)
    for answer, row in chosen.items():
        verdicts.weight[row] *= whole * votes[answer] / len(members)
    return out
