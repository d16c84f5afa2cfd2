"""How surely a text is a prompt injection or a jailbreak: a score in 0..1 and the families of attack that make it up.

A text becomes a string with one character a word, the word's classes, on which the rules of `lexicon` are patterns; so
a rule costs nothing where its classes are not all there, and no text, however hostile, takes more than linear time.
Every way that a text may hide (see `normalise`) is looked at, and hiding counts as evidence of its own.

The score is 1 - prod(1 - weight) over families. What it finds and what it finds wrongly is measured by
`python -m benchmarks.guards`; it is a screen that raises the cost of an attack, no proof of harmlessness.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import attrgetter

from potstill.serving.guards.lexicon import CLASSES, OTHER_ALPHABETS, RAREST, RULES, SIGNS
from potstill.serving.guards.normalise import (
    MARKED,
    STOPS,
    Reading,
    decoded,
    joined,
    rot13,
    tokens_of,
    unfigured,
    unsplit,
)

OTHER, STOP, SINGLE = ".", "|", "\u0100"
TURNED, BACKWARDS = "\u0101", "\u0102"
_FIRST_CLASS = 0x0103

_HIDDEN = 0.45  # what hiding an attack adds to it


@dataclass(frozen=True, slots=True)
class Verdict:
    """`score` in 0..1; the families that were found, heaviest first."""

    score: float
    families: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Rule:
    """`needs`: the letters of each of its parts."""

    place: int
    family: str
    weight: float
    needs: tuple[frozenset[str], ...]
    pattern: re.Pattern[str]


_place = attrgetter("place")


def score(text: str) -> Verdict:
    """The verdict over a text and everything that is hidden in it."""
    return score_reading(Reading(text))


def score_reading(reading: Reading) -> Verdict:
    found: dict[str, float] = {}
    _look(reading, found, 0)
    return _verdict(found)


def score_all(readings: Iterable[Reading]) -> Verdict:
    """The verdict over several texts of one request: the worst of them, not their sum."""
    return max((score_reading(each) for each in readings), key=lambda each: each.score, default=Verdict(0.0, ()))


def _verdict(found: dict[str, float]) -> Verdict:
    if not found:
        return Verdict(0.0, ())
    families = sorted(found, key=lambda name: -found[name])
    return Verdict(round(1 - prod(1 - found[name] for name in families), 4), tuple(families))


def _look(reading: Reading, found: dict[str, float], depth: int) -> None:
    """Add what the text and its decoded parts hold; encodings are followed twice, no further."""
    text, lower = reading.text, reading.lower
    if not text.isascii():
        _other_alphabets(text, found)
    _signs(lower, found)
    classes = _classes_of(reading.tokens)
    _rules(classes, found)
    _disguised(reading, classes, found)
    if depth < 2:
        for each in decoded(text):
            hidden: dict[str, float] = {}
            _look(Reading(each), hidden, depth + 1)
            _add_hidden(hidden, found)


def _disguised(reading: Reading, classes: str, found: dict[str, float]) -> None:
    """Words behind figures, set apart, broken by marks, turned by thirteen letters or written backwards."""
    lower = reading.lower
    if (written := unfigured(lower)) != lower:
        _try_if_new(written, reading, found)
    if classes.count(SINGLE) >= 5 and _singles().search(classes):
        _try(_cut(joined(lower)), found)
    if MARKED.search(lower):
        _try_if_new(unsplit(lower), reading, found)
    if classes.count(TURNED) >= 2:
        _try(rot13(lower), found)
    if classes.count(BACKWARDS) >= 2:
        _try(lower[::-1], found)


def _try_if_new(lower: str, reading: Reading, found: dict[str, float]) -> None:
    """Look at a view that shows a known word which the text itself does not."""
    if not _table().keys().isdisjoint(set(tokens_of(lower)).difference(reading.tokens)):
        _try(lower, found)


def _try(lower: str, found: dict[str, float]) -> None:
    hidden: dict[str, float] = {}
    _rules(_classes_of(tokens_of(lower)), hidden)
    _signs(lower, hidden)
    _add_hidden({each: weight for each, weight in hidden.items() if weight > found.get(each, 0.0)}, found)


def _add_hidden(hidden: dict[str, float], found: dict[str, float]) -> None:
    if max(hidden.values(), default=0.0) >= 0.4:
        hidden["hidden"] = _HIDDEN
    for family, weight in hidden.items():
        found[family] = max(weight, found.get(family, 0.0))


def _classes_of(tokens: list[str]) -> str:
    get = _table().get
    return "".join([get(each, OTHER) for each in tokens])


def _rules(classes: str, found: dict[str, float]) -> None:
    present = set(classes)
    by_letter = _by_letter()
    worth_a_try = {rule for letter in present & by_letter.keys() for rule in by_letter[letter]}
    for rule in sorted(worth_a_try, key=_place):
        if rule.weight <= found.get(rule.family, 0.0) or any(map(present.isdisjoint, rule.needs)):
            continue
        if rule.pattern.search(classes):
            found[rule.family] = rule.weight


def _signs(lower: str, found: dict[str, float]) -> None:
    for sign, weight, family, pattern in _patterns():
        if sign in lower and weight > found.get(family, 0.0) and pattern.search(lower):
            found[family] = weight


def _other_alphabets(text: str, found: dict[str, float]) -> None:
    lower = text.lower()
    for weight, family, pattern in _foreign():
        if weight > found.get(family, 0.0) and pattern.search(lower):
            found[family] = weight


def _cut(text: str) -> str:
    """Long words cut by the lexicon: what was set apart lost its spaces too."""
    words = _known_words()
    return " ".join(" ".join(words.findall(each)) if len(each) > 12 else each for each in text.split())


# What follows is built once, from the lexicon.


@lru_cache(maxsize=1)
def _members() -> dict[str, frozenset[str]]:
    """The words of every class; a word that a rule spells out is a class of itself."""
    members = {name: frozenset(words.replace("'", "").split()) for name, words in CLASSES.items()}
    for _, _, rule in RULES:
        for part in rule.split():
            for name in part.split("/"):
                if not name.startswith("~") and name not in members:
                    members[name] = frozenset([name.replace("'", "")])
    return members


@lru_cache(maxsize=1)
def _letters() -> dict[frozenset[str], str]:
    """One character for each set of classes that some word belongs to."""
    sets = {frozenset(name for name, words in _members().items() if word in words) for word in _words()}
    return {each: chr(_FIRST_CLASS + at) for at, each in enumerate(sorted(sets, key=sorted))}


@lru_cache(maxsize=1)
def _words() -> frozenset[str]:
    return frozenset().union(*_members().values())


@lru_cache(maxsize=1)
def _table() -> dict[str, str]:
    """The character of every known word; of single letters; of words turned by thirteen or written backwards."""
    table = {chr(97 + at): SINGLE for at in range(26)} | dict.fromkeys(STOPS, STOP)
    for word in _hiding():
        table.setdefault(rot13(word), TURNED)
        table.setdefault(word[::-1], BACKWARDS)
    members = _members()
    for word in _words():
        table[word] = _letters()[frozenset(name for name, words in members.items() if word in words)]
    return table


def _hiding() -> list[str]:
    """Words of the classes that attacks are made of, long enough that their disguises are hardly words of their own."""
    return sorted({word for words in CLASSES.values() for word in words.split() if len(word) >= 5})


@lru_cache(maxsize=1)
def _known_words() -> re.Pattern[str]:
    known = sorted((each for each in _words() if len(each) > 1), key=lambda each: (-len(each), each))
    return re.compile("|".join([*map(re.escape, known), "[a-z0-9]"]))


@lru_cache(maxsize=1)
def _by_letter() -> dict[str, tuple[_Rule, ...]]:
    """For each letter the rules whose rarest part has it: only those are worth a try where it stands.

    The heaviest rule comes first; a lighter one of a family that was found is not tried.
    """
    found: dict[str, list[_Rule]] = {}
    for place, (family, weight, text) in enumerate(sorted(RULES, key=lambda each: -each[1])):
        parts = [each for each in text.split() if not each.startswith("~")]
        letters = {each: _letters_of(each) for each in parts}
        rule = _Rule(place, family, weight, tuple(letters.values()), re.compile(_pattern(text)))
        for letter in letters[min(parts, key=_commonness)]:
            found.setdefault(letter, []).append(rule)
    return {letter: tuple(rules) for letter, rules in found.items()}


def _letters_of(part: str) -> frozenset[str]:
    names = set(part.split("/"))
    return frozenset(letter for group, letter in _letters().items() if group & names)


def _pattern(rule: str) -> str:
    pattern = ""
    for part in rule.split():
        if part.startswith("~~"):
            pattern += f".{{0,{int(part[2:])}}}"
        elif part.startswith("~"):
            pattern += f"[^|]{{0,{int(part[1:])}}}"
        else:
            pattern += f"[{re.escape(''.join(sorted(_letters_of(part))))}]"
    return pattern


def _commonness(part: str) -> int:
    """Place of a part's most ordinary class in the order of how often its words stand in everyday text."""
    return max(RAREST.index(name) if name in RAREST else len(RAREST) for name in part.split("/"))


@lru_cache(maxsize=1)
def _singles() -> re.Pattern[str]:
    """Five letters that stand alone, one after the other; some letters (u, i) are words of a class too."""
    table = _table()
    letters = {table[chr(97 + at)] for at in range(26)}
    return re.compile(f"(?:[{re.escape(''.join(sorted(letters)))}]\\|?){{5,}}")


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[str, float, str, re.Pattern[str]], ...]:
    return tuple((sign, weight, family, re.compile(pattern)) for sign, weight, family, pattern in SIGNS)


@lru_cache(maxsize=1)
def _foreign() -> tuple[tuple[float, str, re.Pattern[str]], ...]:
    return tuple((weight, family, re.compile(pattern)) for weight, family, pattern in OTHER_ALPHABETS)
