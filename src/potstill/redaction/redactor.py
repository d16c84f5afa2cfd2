"""`Redactor`: personal data and secrets in texts, JSON values and exchanges replaced by placeholders."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from potstill.records import Json
from potstill.redaction.rules import KINDS, Kind, Taken, find, is_card
from potstill.redaction.walk import INSTRUCTION, KEY, NUMBER, OWNER, SAID, Leaf, copied, leaves, walk

if TYPE_CHECKING:
    from potstill.redaction.names import Names

PLACEHOLDER = re.compile(r"<[A-Z_]+_\d+>")
DIGITS = 8  # of a placeholder: two of ten values in a conversation share one in 1 of 2 million conversations
NAME_DIGITS = 16  # of a user or conversation named by personal data: 10 million of them stay apart
_MAYBE = re.compile(r"[0-9@:_=-]")  # no rule finds anything in a text without one of these, or one of those below
_MARKS = ("eyJ", "AKIA", "ASIA", "AIza", "Bearer ", "SG.", "ya29.", "hvs.")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*', re.DOTALL)
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]{256,}={0,2}\s*")
_NO_DIGIT = re.compile(r"[^0-9]")
_NO_WORD = re.compile(r"[\W_]")
_JSON_BEGINS = frozenset('{[" \n\t\r')


@dataclass(slots=True)
class Scope:
    """Where a value has the same placeholder: one conversation, or every one for what stands in instructions."""

    own: bytes
    shared: bytes
    instructing: bool = False
    standing: set[tuple[str, str]] = field(default_factory=set)


@dataclass
class Redactor:
    """Replaces findings by `<KIND_n>` and counts them in `found`, by kind.

    n is a keyed hash of (conversation, kind, value), so it depends on nothing that was seen before: every process
    gives the same bytes for a row, in any order, and a value keeps its placeholder across the exchanges of a
    conversation. What stands in an exchange's instructions (system and developer messages, tool definitions) is
    hashed without the conversation, everywhere in that exchange: a standing text that many conversations share must
    stay one text. `key` keeps others from confirming a guessed value; see `redaction_key`. It may be any length.

    `region` (ISO 3166) is where national telephone numbers are read as. `names` adds people, places and
    organisations found by a model; off when None.
    """

    kinds: tuple[Kind, ...] = KINDS
    region: str = "US"
    key: bytes = b""
    names: Names | None = None
    found: Counter[str] = field(default_factory=Counter)
    _named: dict[str, Sequence[tuple[int, int, str]]] = field(default_factory=dict, repr=False)

    def text(self, text: str, conversation: str = "") -> str:
        """The text with every finding replaced. Text that is JSON stays JSON."""
        return self._text(text, self._scope(conversation), SAID)

    def value(self, value: Any, conversation: str = "") -> Any:
        """Any JSON value with every string in it redacted, keys and card numbers given as integers too."""
        box, keys, found = [copied(value)], list[Leaf](), list[Leaf]()
        walk(box, SAID, found, keys)
        self._settle([*found, *keys], self._scope(conversation))
        return box[0]

    def exchange(self, exchange: Json) -> Json:
        """An exchange or feedback line in JSON form, redacted; its id, its times and the split stay."""
        out: Json = copied(exchange)
        self.settle(out, leaves(out))
        return out

    def settle(self, exchange: Json, found: Sequence[Leaf]) -> bool:
        """Redact these leaves of an exchange where they are, and say whether any changed."""
        metadata = exchange.get("metadata") or {}
        conversation = metadata.get("conversation") or exchange.get("id", "")
        return self._settle(found, self._scope(str(conversation)))

    def prepare(self, texts: Iterable[str]) -> None:
        """Find the names in many texts at once and keep them until the next call; nothing without `names`."""
        if self.names is not None:
            wanted = sorted(set(texts))
            self._named = dict(zip(wanted, self.names.find(wanted), strict=True))

    def _settle(self, found: Sequence[Leaf], scope: Scope) -> bool:
        changed = False
        for parent, place, text, marks in found:
            scope.instructing = bool(marks & INSTRUCTION)
            shown = self._shown(place, text, marks, scope)
            if shown == text:
                continue
            changed = True
            if marks & KEY:
                _rename(parent, place, shown)
            else:
                parent[place] = shown
        return changed

    def _shown(self, place: str, text: str, marks: int, scope: Scope) -> str:
        if marks & OWNER:
            return self._owner(place, text, scope)
        if marks & NUMBER:
            return self._name("CARD", text, scope) if "CARD" in self.kinds and is_card(text) else text
        if len(text) >= 256 and _BASE64.fullmatch(text):
            return text  # a picture or a sound
        return self._text(text, scope, marks)

    def _owner(self, place: str, value: str, scope: Scope) -> str:
        """A user or conversation; one named by personal data gets the same name in every exchange.

        A placeholder of one conversation would make one user many.
        """
        spans = self._spans(value, SAID)
        if not spans:
            return value
        self.found.update(kind for _, _, kind in spans)
        return f"<{place.upper()}_{_number(value, scope.shared, NAME_DIGITS)}>"

    def _scope(self, conversation: str) -> Scope:
        key = self.key if len(self.key) <= 64 else blake2b(self.key).digest()
        own = blake2b(b"in" + conversation.encode("utf-8", "surrogatepass"), key=key, digest_size=32).digest()
        return Scope(own, blake2b(b"all", key=key, digest_size=32).digest())

    def _text(self, text: str, scope: Scope, marks: int = 0) -> str:
        names = self.names is not None and marks & SAID
        if not names and not _MAYBE.search(text) and not any(mark in text for mark in _MARKS):
            return text
        if _is_json(text):
            return _TOKEN.sub(lambda found: self._token(found.group(), scope, marks), text)
        spans = self._spans(text, marks)
        if not spans:
            return text
        parts, at = [], 0
        for start, end, kind in spans:
            parts += [text[at:start], self._name(kind, text[start:end], scope)]
            at = end
        return "".join([*parts, text[at:]])

    def _token(self, token: str, scope: Scope, marks: int) -> str:
        """A string or number of a JSON text, redacted and written again as JSON; others keep every character."""
        if token[0] != '"':
            is_found = "CARD" in self.kinds and token.isdigit() and len(token) in (15, 16) and is_card(token)
            return f'"{self._name("CARD", token, scope)}"' if is_found else token
        text = json.loads(token, strict=False)
        shown = self._text(text, scope, marks)
        return token if shown == text else json.dumps(shown, ensure_ascii=token.isascii())

    def _spans(self, text: str, marks: int) -> list[tuple[int, int, str]]:
        spans = find(text, self.kinds, self.region)
        if self.names is not None and marks & SAID:
            named = self._named[text] if text in self._named else self.names.find([text])[0]
            taken = Taken(spans)
            spans = sorted([*spans, *(each for each in named if taken.free(each[0], each[1]))])
        return spans

    def _name(self, kind: str, value: str, scope: Scope) -> str:
        self.found[kind] += 1
        normal = (kind, _normal(kind, value))
        if scope.instructing:
            scope.standing.add(normal)
        secret = scope.shared if normal in scope.standing else scope.own
        return f"<{kind}_{_number(chr(0).join(normal), secret, DIGITS)}>"


def _number(text: str, secret: bytes, digits: int) -> str:
    """A keyed hash (BLAKE2b, RFC 7693) in decimal figures: `prompt` tells placeholders by these."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), key=secret, digest_size=16).digest()
    return f"{int.from_bytes(digest, 'big') % 10**digits:0{digits}d}"


def _normal(kind: str, value: str) -> str:
    """What two spellings of one value have in common."""
    if kind in ("PHONE", "CARD"):
        return _NO_DIGIT.sub("", value)
    if kind in ("IBAN", "NATIONAL_ID"):
        return _NO_WORD.sub("", value).upper()
    if kind in ("URL", "API_KEY"):
        return value
    return " ".join(value.replace("%40", "@").casefold().split())


def _is_json(text: str) -> bool:
    """Whether a text is JSON of more than a number or a name."""
    import orjson

    if text[:1] not in _JSON_BEGINS or text.lstrip()[:1] not in ("{", "[", '"'):
        return False
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _rename(mapping: Json, old: str, new: str) -> None:
    """Give an entry another key in its place. Two spellings of one value are two entries: neither may be lost."""
    items = list(mapping.items())
    while new in mapping:
        new += "'"
    mapping.clear()
    mapping.update((new if name == old else name, each) for name, each in items)
