"""Filters over a text that comes in pieces, which give the same for every way of cutting it.

What is let through does not depend on the pieces: it is decided by the text alone where a stretch ends. A stretch of
plain words ends with every word. One that may hold personal data or a secret (a figure, an @, a long word) ends when
CALM characters without such a sign have followed, since no rule of `potstill.redaction` reaches further. A whole
answer goes through the same filter in one piece, so that a stream gives what a whole answer would have given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from potstill.serving.guards.blocklist import Blocklist

Finding = tuple[int, int, str]  # start, end, kind
Find = Callable[[str], list[Finding]]

CALM = 48  # an IBAN of 34 characters in groups, an extension behind a number, the word before a key
MOST_HELD = 4_096  # characters; a stretch that is longer ends where it is, so that a stream of figures goes on
MOST_FIGURES = 512  # of a text that is searched in one piece
_FIGURE = re.compile("[0-9]")
_SIGN = re.compile(r"[0-9@\\]|://|::|--|[^\s\u2e80-\U0010ffff]{16}")
# One space at a time and no word above the limit, so that a unit is the same wherever the pieces were cut.
_LETTER = r"[^\s\u2e80-\U0010ffff]"
_WORD = re.compile(rf"{_LETTER}{{0,{MOST_HELD - 1}}}[\s\u2e80-\U0010ffff]|{_LETTER}{{{MOST_HELD}}}")
_PEM, _PEM_END = "-----BEGIN ", re.compile(r"-----END [A-Z ]*-----")


def sparing(find: Find) -> Find:
    """The same search, a piece at a time where a text is mostly figures.

    The rules for numbers take more than linear time on long runs of figures (ten thousand ones: half a second, forty
    thousand: minutes), and anybody may send such a text.
    """

    def look(text: str) -> list[Finding]:
        if len(text) <= MOST_FIGURES or len(_FIGURE.findall(text)) <= MOST_FIGURES:
            return find(text)
        found: list[Finding] = []
        at = 0
        while at < len(text):
            end = _end_of_piece(text, at)
            found += [(a + at, b + at, kind) for a, b, kind in find(text[at:end])]
            at = end
        return found

    return look


def _end_of_piece(text: str, at: int) -> int:
    """Behind the last line, else comma, else space of the next MOST_FIGURES characters; at their end where none is."""
    end = at + MOST_FIGURES
    if end >= len(text):
        return len(text)
    places = (text.rfind(each, at, end) for each in ("\n", ",", " "))
    return next((each + 1 for each in places if each > at), end)


class Passing(Protocol):
    """A text of an answer on its way to the client. Once `finish_reason` is set, the answer has ended."""

    @property
    def finish_reason(self) -> str | None: ...

    def feed(self, text: str) -> str:
        """What may be shown now that this has come."""
        ...

    def flush(self) -> str:
        """The rest, when nothing more comes."""
        ...


class Cut(Exception):
    """Text that may not be shown was met; `shown` may still be."""

    def __init__(self, guard: str, kind: str, shown: str = "") -> None:
        super().__init__(guard)
        self.guard, self.kind, self.shown = guard, kind, shown


class Window(Protocol):
    """One filter of a chain; `feed` and `flush` raise Cut where the answer must end."""

    def feed(self, text: str) -> str: ...

    def flush(self) -> str: ...


@dataclass(eq=False)
class Stretches:
    """What `find` finds is given to `replace(value, kind)`, which gives what stands in its place or raises Cut."""

    find: Find
    replace: Callable[[str, str], str]
    whole_json: Callable[[str], str] | None = None  # for a text that begins as JSON: held back to its end
    _context: str = ""
    _stretch: str = ""  # from its first sign on
    _since: int = 0  # characters without a sign at its end
    _rest: str = ""  # the word that is not yet over
    _json: bool | None = None
    _out: list[str] = field(default_factory=list)

    def feed(self, text: str) -> str:
        self._rest += text
        if self._is_json():
            return ""
        at = self._plain_to()
        while word := _WORD.match(self._rest, at):
            at = word.end()
            self._take(word.group())
        self._rest = self._rest[at:]
        return self._given()

    def flush(self) -> str:
        rest, self._rest = self._rest, ""
        if self._json and self.whole_json is not None:
            return self.whole_json(rest)
        self._take(rest)
        self._end_stretch()
        return self._given()

    def _plain_to(self) -> int:
        """Let plain words at the beginning through at once, and say where they end: word by word gives the same."""
        end = max(self._rest.rfind(" "), self._rest.rfind("\n")) + 1
        if self._stretch or not end or _SIGN.search(self._rest, 0, end):
            return 0
        self._let_through(self._rest[:end], self._rest[:end])
        return end

    def _is_json(self) -> bool:
        if self._json is None and self._rest.strip():
            self._json = self.whole_json is not None and self._rest.lstrip()[0] in '{["'
        return bool(self._json)

    def _take(self, word: str) -> None:
        """One word with the space behind it: the only unit there is, so that pieces make no difference."""
        if _SIGN.search(word):
            self._stretch += word
            self._since = 0
        elif self._stretch:
            self._stretch += word
            self._since += len(word)
        else:
            self._let_through(word, word)
            return
        calm = self._since >= CALM and (_PEM not in self._stretch or _PEM_END.search(self._stretch))
        if calm or len(self._stretch) >= MOST_HELD:
            self._end_stretch()

    def _end_stretch(self) -> None:
        stretch, self._stretch, self._since = self._stretch, "", 0
        if not stretch:
            return
        before = len(self._context)
        at, parts = 0, list[str]()
        for start, end, kind in self.find(self._context + stretch):
            start, end = max(0, start - before), end - before
            if end <= at:
                continue
            parts.append(stretch[at:start])
            try:
                parts.append(self.replace(stretch[start:end], kind))
            except Cut as cut:
                cut.shown = self._given() + "".join(parts)
                raise
            at = end
        self._let_through("".join([*parts, stretch[at:]]), stretch)

    def _let_through(self, shown: str, came: str) -> None:
        self._out.append(shown)
        self._context = (self._context + came)[-CALM:]

    def _given(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text


@dataclass(eq=False)
class Listed:
    """Matches of a blocklist, none longer than its width, replaced by `replace(match, "listed")`."""

    blocklist: Blocklist
    replace: Callable[[str, str], str]
    _text: str = ""  # one character that was let through, for word boundaries, then what is held back
    _at: int = 0

    def feed(self, text: str) -> str:
        self._text += text
        width = self.blocklist.width
        return "" if width is None else self._until(len(self._text) - width)

    def flush(self) -> str:
        shown = self._until(len(self._text) + 1)
        self._text, self._at = "", 0
        return shown

    def _until(self, settled: int) -> str:
        """What may be shown up to `settled`: a match that begins before it cannot become another any more."""
        parts = list[str]()
        while self._at < settled:
            found = self.blocklist.first(self._text, self._at)
            if found is None or found[0] >= settled:
                end = min(settled, len(self._text))
                parts.append(self._text[self._at : end])
                self._at = end
                break
            parts.append(self._text[self._at : found[0]])
            try:
                parts.append(self.replace(self._text[found[0] : found[1]], "listed"))
            except Cut as cut:
                cut.shown = "".join(parts)
                raise
            self._at = found[1]
        kept = max(0, self._at - 1)
        self._text, self._at = self._text[kept:], self._at - kept
        return "".join(parts)


@dataclass(eq=False)
class Chain:
    """Windows one behind the other. After a Cut nothing more comes, and `finish_reason` says why."""

    windows: Sequence[Window]
    on_cut: Callable[[Cut], None]
    finish_reason: str | None = None
    shown: list[str] = field(default_factory=list)

    def feed(self, text: str) -> str:
        return self._through(text, ended=False)

    def flush(self) -> str:
        return self._through("", ended=True)

    def _through(self, text: str, ended: bool) -> str:
        if self.finish_reason is not None:
            return ""
        for window in self.windows:
            passed = ""
            try:
                passed = window.feed(text)
                if ended:
                    passed += window.flush()
            except Cut as cut:
                if self.finish_reason is None:
                    self.finish_reason = "content_filter"
                    self.on_cut(cut)
                passed, ended = passed + cut.shown, True  # what lies before the cut still passes the windows behind
            text = passed
        self.shown.append(text)
        return text
