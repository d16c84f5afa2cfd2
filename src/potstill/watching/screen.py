"""Corrections before they may teach: whose they are, whom they contradict, and how many one key may give.

Some hundred poisoned rows are enough whatever the size of a log, so a key's influence is capped; and a key that
disagrees with everybody else more often than chance explains is refused as a whole, with every correction of its own.
What a correction is held against: what other keys say of the same question, what the large model said of it, and what
a naive Bayes classifier of the training rows finds possible (among its best few). None of them is always right. So
rates are compared, never single rows: a key's with all others' and with the training rows' own.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from potstill.records import Json
from potstill.watching.caps import most_of_a_key
from potstill.watching.settings import PoisonSettings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

POSSIBLE = 5  # of the classifier's labels: an honest correction is among them nearly always
BUCKETS = 4096
HELD = 5  # every fifth training row is kept back to see how often the classifier itself finds an answer impossible
_WORD = re.compile(r"\w+")
Earlier = Mapping[str, tuple[int, int]]  # by key: corrections that were refused before, and how many contradicted
NOTHING_EARLIER: Earlier = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Correction:
    """One correction: `wanted` and `said` are canonical texts, `large` what the large model said where it is known."""

    id: str
    key: str
    text: str
    wanted: str
    said: str
    large: str | None = None


@dataclass(frozen=True, slots=True)
class Screened:
    """What may teach; what may not, with the reason (`refused`: for good, `over`: of one key too many this time).

    `keys` has a line for every key: how many it gave, contradicted (what was refused of it before counts too; `new` is
    without), kept; and p where it was compared.
    """

    kept: tuple[str, ...]
    refused: Mapping[str, str]
    over: Mapping[str, str]
    keys: list[Json]


def screen(
    corrections: Sequence[Correction], training: Sequence[tuple[str, str]], settings: PoisonSettings,
    earlier: Earlier = NOTHING_EARLIER,
) -> Screened:  # fmt: skip
    """`training` holds (text, answer) of rows that are trusted; without any, keys are held against each other alone.

    `earlier` is what was refused of keys before: it counts against what they give now, and enough that is right makes
    up for it.
    """
    judge = Judge(training) if _labels_enough(training) else None
    against = {each.id: _contradicts(each, judge) for each in corrections}
    majority = _majorities(corrections)
    for each in corrections:
        other = majority.get(each.id)
        if other is not None and other != each.wanted:
            against[each.id] = against[each.id] or "others agree on another answer"
    lines, refused_keys = _compare(corrections, against, judge.held_back if judge else (0, 0), settings, earlier)
    refused = {
        each.id: f"key {each.key}: refused ({against[each.id] or 'its other corrections disagree'})"
        for each in corrections if each.key in refused_keys
    }  # fmt: skip
    for each in corrections:
        if each.id not in refused and majority.get(each.id) not in (None, each.wanted):
            refused[each.id] = f"key {each.key}: others agree on another answer"
    over = _over_the_cap([each for each in corrections if each.id not in refused], settings)
    kept = tuple(each.id for each in corrections if each.id not in refused and each.id not in over)
    stayed, owners = set(kept), Counter[str]()
    owners.update(each.key for each in corrections if each.id in stayed)
    for line in lines:
        line["kept"] = owners[line["key"]]
    return Screened(kept, refused, over, lines)


class Judge:
    """Multinomial naive Bayes over hashed words: which answers the training rows find possible for a text."""

    def __init__(self, training: Sequence[tuple[str, str]]) -> None:
        import numpy as np

        rest = [each for at, each in enumerate(training) if at % HELD]
        self.labels = sorted({label for _, label in rest})
        place = {label: at for at, label in enumerate(self.labels)}
        counts = np.full((len(self.labels), BUCKETS), 0.1)
        prior = np.ones(len(self.labels))
        for text, label in rest:
            np.add.at(counts[place[label]], _buckets(text), 1.0)
            prior[place[label]] += 1
        self._logs = np.log(counts / counts.sum(axis=1, keepdims=True))
        self._prior = np.log(prior / prior.sum())
        held = [each for at, each in enumerate(training) if at % HELD == 0]
        self.held_back = sum(not self.possible(*each) for each in held), len(held)

    def possible(self, text: str, label: str) -> bool:
        """Whether the label is among the best few; a label that training never had is not."""
        import numpy as np

        if label not in self.labels:
            return False
        scores = self._prior + self._logs[:, _buckets(text)].sum(axis=1)
        few = min(POSSIBLE, max(1, len(self.labels) // 3))
        return bool(np.count_nonzero(scores > scores[self.labels.index(label)]) < few)


def _buckets(text: str) -> npt.NDArray[np.int64]:
    import numpy as np

    words = _WORD.findall(text.lower()) or [""]
    return np.array([zlib.crc32(each.encode()) % BUCKETS for each in words], dtype=np.int64)


def _labels_enough(training: Sequence[tuple[str, str]]) -> bool:
    """Whether answers are labels that come again, which a classifier can learn; free text is not."""
    answers = Counter(answer for _, answer in training)
    return len(training) >= 50 and 2 <= len(answers) <= len(training) // 5


def _contradicts(each: Correction, judge: Judge | None) -> str | None:
    if each.large is not None and each.large != each.wanted:
        return "the large model said otherwise"
    if judge is not None and not judge.possible(each.text, each.wanted):
        return "not among what the training rows find possible"
    return None


def _majorities(corrections: Sequence[Correction]) -> dict[str, str]:
    """For each correction what at least two other keys agree on for the same question, a key counting once."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for each in corrections:
        said[_question(each.text)][each.key] = each.wanted
    found = {}
    for each in corrections:
        others = Counter(wanted for key, wanted in said[_question(each.text)].items() if key != each.key)
        for wanted, votes in others.most_common(1):
            if votes >= 2 and votes > sum(others.values()) / 2:
                found[each.id] = wanted
    return found


def _question(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))


def _compare(
    corrections: Sequence[Correction], against: Mapping[str, str | None], held_back: tuple[int, int],
    settings: PoisonSettings, earlier: Earlier,
) -> tuple[list[Json], set[str]]:  # fmt: skip
    """A line a key, and the keys that contradict more than chance: Fisher's exact test, Holm (1979) over all keys."""
    from scipy.stats import hypergeom

    new = Counter(each.key for each in corrections)
    new_bad = Counter(each.key for each in corrections if against[each.id])
    given = {key: new[key] + earlier.get(key, (0, 0))[0] for key in new}
    bad = {key: new_bad[key] + earlier.get(key, (0, 0))[1] for key in new}
    lines: list[Json] = []
    for key, count in given.items():
        rest = sum(given.values()) - count + held_back[1]
        bad_rest = sum(bad.values()) - bad[key] + held_back[0]
        p = float(hypergeom.sf(bad[key] - 1, count + rest, bad[key] + bad_rest, count)) if rest else 1.0
        rate_rest = bad_rest / rest if rest else 0.0
        rates = {"contradict": bad[key], "elsewhere": round(rate_rest, 4), "p": p}
        lines.append({"key": key, "corrections": count, **rates, "new": new[key], "new_contradict": new_bad[key]})
    refused: set[str] = set()
    for at, line in enumerate(sorted(lines, key=lambda each: float(each["p"]))):
        if line["p"] * (len(lines) - at) > settings.alpha:
            break
        enough = line["contradict"] >= settings.least_rows
        if enough and line["contradict"] / line["corrections"] >= settings.least_ratio * line["elsewhere"]:
            refused.add(line["key"])
    for line in lines:
        line["refused"] = line["key"] in refused
    return lines, refused


def _over_the_cap(corrections: Sequence[Correction], settings: PoisonSettings) -> dict[str, str]:
    """What one key gave beyond its share; which of its corrections stay is decided by the hash of their ids."""
    most = most_of_a_key(Counter(each.key for each in corrections), settings)
    by_key: dict[str, list[str]] = defaultdict(list)
    for each in corrections:
        if each.key not in settings.trusted:
            by_key[each.key].append(each.id)
    return {
        identity: f"key {key}: over the cap of {most} corrections"
        for key, ids in by_key.items()
        for identity in sorted(ids, key=lambda each: hashlib.sha256(each.encode()).digest())[most:]
    }
