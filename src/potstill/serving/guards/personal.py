"""Personal data in a request: blocked, replaced by placeholders, or let through, a kind at a time.

The values behind the placeholders stay with the one call that they came with: they are kept on no server, in no cache
and in no log, and the placeholders of another call are text like any other.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from potstill.redaction import KINDS, Redactor
from potstill.redaction.redactor import _MARKS, _MAYBE, Scope
from potstill.redaction.rules import find
from potstill.serving.guards.settings import PersonalAction, PersonalScreen
from potstill.serving.guards.windows import Finding, sparing

_PLACEHOLDER = re.compile(r"<[A-Z_]+_[0-9]+>")
_MAY_BEGIN = re.compile(r"<[A-Z_]{0,24}(?:_[0-9]{0,24})?\Z")
_LONGEST = 48
_LOOKS = 4
_TOUCHING = re.compile(r"_[0-9]+>[^\w<>]{0,4}[A-Za-z]{0,4}[0-9]|[0-9][^\w<>]{0,4}<[A-Z_]+_[0-9]+>")


def may_hold(text: str) -> bool:
    """Whether a rule can find anything in the text at all: the redactor's own first question, before one is made."""
    return _MAYBE.search(text) is not None or any(mark in text for mark in _MARKS)


def actions_of(settings: PersonalScreen) -> dict[str, PersonalAction]:
    """What is done with each kind that is not simply let through."""
    actions = {kind: settings.kinds.get(kind, settings.default) for kind in KINDS}
    return {kind: action for kind, action in actions.items() if action != "allow"}


@dataclass
class Placeholders(Redactor):
    """A redactor for one call: what it replaced is in `values`, and `blocked` counts what may not pass at all."""

    actions: Mapping[str, PersonalAction] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict, repr=False)
    blocked: Counter[str] = field(default_factory=Counter)

    def text(self, text: str, conversation: str = "") -> str:
        """Looks again where something was replaced: the rules miss the second of two values that touch."""
        for _ in range(_LOOKS):
            before, text = text, super().text(text, conversation)
            if text == before or not _TOUCHING.search(text):
                break
        return text

    def _spans(self, text: str, marks: int) -> list[Finding]:
        return sparing(lambda piece: find(piece, self.kinds, self.region))(text)

    def _name(self, kind: str, value: str, scope: Scope) -> str:
        action = self.actions[kind]
        if action != "redact":
            self.found[kind] += 1
            self.blocked[kind] += action == "block"
            return value
        name = super()._name(kind, value, scope)
        self.values.setdefault(name, value)
        return name


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """Placeholders of one call put back into a text that comes in pieces. Values are repr'd nowhere."""

    values: Mapping[str, str] = field(repr=False)
    _state: list[str] = field(default_factory=lambda: ["", ""], repr=False)  # held back; the first sign of the text

    finish_reason: None = None

    def feed(self, text: str) -> str:
        """What may be shown now: all but the end that may be half a placeholder."""
        held, first = self._state
        text = held + text
        first = first or text.lstrip()[:1]
        begun = _MAY_BEGIN.search(text, max(0, len(text) - _LONGEST))
        cut = begun.start() if begun else len(text)
        self._state[:] = [text[cut:], first]
        return _PLACEHOLDER.sub(self._value, text[:cut])

    def flush(self) -> str:
        text = self._state[0]
        self._state[0] = ""
        return _PLACEHOLDER.sub(self._value, text)

    def inside_json(self, text: str) -> str:
        """A whole JSON text with the values put back, written as JSON writes them."""
        return _PLACEHOLDER.sub(self._escaped, text)

    def _value(self, found: re.Match[str]) -> str:
        return self._escaped(found) if self._state[1] in ("{", "[", '"') else self._plain(found)

    def _plain(self, found: re.Match[str]) -> str:
        return self.values.get(found.group(), found.group())

    def _escaped(self, found: re.Match[str]) -> str:
        return json.dumps(self._plain(found), ensure_ascii=False)[1:-1]


MakePlaceholders = Callable[[], Placeholders]
