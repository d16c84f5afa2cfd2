"""Words and patterns that may not pass, matched in time that grows with the text alone.

Words become one pattern, a tree of letters. Patterns of the user's are compiled by RE2 (google-re2), which matches in
linear time whatever it is given.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from potstill.errors import RecipeError
from potstill.serving.guards.normalise import Reading, plain, tokens_of
from potstill.serving.guards.settings import ListSettings

WIDEST = 256  # characters of a match that a stream waits for; a pattern that may match more needs the whole answer
_END = ""
Span = tuple[int, int]
Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern; `width` is the longest match in characters, None where there is no bound."""

    compiled: Any
    width: int | None
    firsts: frozenset[str] | None = None  # first words of all that it matches, where they are known

    def may_match(self, tokens: Collection[str]) -> bool:
        """Whether it can match a plain text of these words; cheap."""
        return self.firsts is None or not self.firsts.isdisjoint(tokens)

    def first(self, text: str, start: int) -> Span | None:
        found = self.compiled.search(text, start)
        return found.span() if found else None


@dataclass(frozen=True, slots=True)
class Blocklist:
    patterns: tuple[Pattern, ...]

    @property
    def width(self) -> int | None:
        """The longest match of any pattern, None where one has no bound within WIDEST."""
        widths = [each.width for each in self.patterns]
        return max((each for each in widths if each is not None), default=0) if None not in widths else None

    def hit(self, text: str) -> bool:
        return any(each.compiled.search(text) for each in self.patterns)

    def read(self, reading: Reading) -> bool:
        """Whether the text holds what is listed, also behind figures, other alphabets, marks or spaces."""
        if any(each.may_match(reading.tokens) and each.compiled.search(reading.lower) for each in self.patterns):
            return True
        disguised = [each for each in reading.views() if each is not reading.lower]
        return any(map(self.hit, disguised)) or (not reading.text.isascii() and self.hit(reading.text))

    def first(self, text: str, start: int) -> Span | None:
        """The match that begins first from `start` on, the longest of those that begin there; never an empty one."""
        best: Span | None = None
        for each in self.patterns:
            found = each.first(text, start)
            if found and (best is None or (found[0], -found[1]) < (best[0], -best[1])):
                best = found
        return best


def load_blocklist(settings: ListSettings, key: str) -> Blocklist:
    """Raises RecipeError naming every word or pattern that cannot be taken."""
    words = [*settings.words, *_lines(settings.file, f"{key}.file")]
    faults, patterns = list[str](), list[Pattern]()
    if words:
        patterns.append(of_words(words))
    for at, each in enumerate(settings.patterns):
        try:
            patterns.append(of_pattern(each))
        except ValueError as fault:
            faults.append(f"{key}.patterns.{at}: {fault}")
    if not patterns and not faults:
        faults.append(f"{key}: empty; give words, a file or patterns")
    if faults:
        raise RecipeError(faults)
    return Blocklist(tuple(patterns))


def _lines(path: str | None, key: str) -> list[str]:
    if path is None:
        return []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise RecipeError([f"{key}: {path}: {fault}"]) from fault
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def of_words(words: Iterable[str]) -> Pattern:
    """One pattern for all words, whole words only; a space of a phrase stands for up to three of any kind."""
    tree: Tree = {}
    width = 0
    given = list(words)
    firsts = [tokens_of(plain(each))[:1] for each in given]
    for word in given:
        letters = [r"\s{1,3}" if each == " " else each for each in " ".join(word.casefold().split())]
        width = max(width, sum(3 if len(each) > 1 else 1 for each in letters))
        node = tree
        for each in letters:
            node = node.setdefault(each, {})
        node[_END] = {}
    text = rf"(?<![^\W_])(?:{_written(tree)})(?![^\W_])"
    known = frozenset(each for first in firsts for each in first) if all(firsts) else None
    return Pattern(re.compile(text, re.IGNORECASE), width + 1 if width < WIDEST else None, known)


def _written(node: Tree) -> str:
    """The tree as a pattern, the longer word before the one that it begins with."""
    branches = [
        (each if len(each) > 1 else re.escape(each)) + _written(below)
        for each, below in sorted(node.items(), reverse=True)
        if each != _END
    ]
    if not branches:
        return ""
    text = branches[0] if len(branches) == 1 and _END not in node else f"(?:{'|'.join(branches)})"
    return f"{text}?" if _END in node else text


def of_pattern(text: str) -> Pattern:
    """A pattern of the user's; raises ValueError saying what is wrong with it."""
    parsed = _parsed(text)
    low, high = parsed.getwidth()
    if low == 0:
        raise ValueError(f"{text!r} matches nothing at all, which stands everywhere")
    looks_around = _holds(parsed, {"ASSERT", "ASSERT_NOT", "GROUPREF", "GROUPREF_EXISTS"})
    if looks_around:
        raise ValueError(f"{text!r}: look-around and references take more than linear time; write it without")
    anchored = _holds(parsed, {"AT_BEGINNING", "AT_BEGINNING_STRING", "AT_END", "AT_END_STRING"})
    width = high + 1 if high < WIDEST and not anchored else None
    engine = import_module("re2")
    try:
        return Pattern(engine.compile(f"(?i){text}", _quiet(engine)), width)
    except engine.error as fault:
        raise ValueError(f"{text!r}: RE2: {_said(fault)}") from fault


def _parsed(text: str) -> Any:
    try:
        return import_module("re._parser").parse(text)
    except re.error as fault:
        raise ValueError(f"{text!r}: {fault}") from fault
    except (RecursionError, OverflowError) as fault:
        raise ValueError(f"{text!r}: too deep or too large") from fault


def _holds(parsed: Any, names: set[str]) -> bool:
    for operator, argument in parsed:
        if str(operator) in names or (str(operator) == "AT" and str(argument) in names):
            return True
        if any(_holds(each, names) for each in _inside(argument)):
            return True
    return False


def _inside(argument: Any) -> Iterable[Any]:
    """The patterns inside an argument of the parser."""
    if hasattr(argument, "getwidth"):
        yield argument
    elif isinstance(argument, tuple | list):
        for each in argument:
            yield from _inside(each)


def _quiet(engine: Any) -> Any:
    options = engine.Options()
    options.log_errors = False
    return options


def _said(fault: Exception) -> str:
    said = fault.args[0] if fault.args else fault
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
