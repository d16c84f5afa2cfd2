"""What a request to forget asks for, and everything known by now of what that is: ids, conversations, texts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.forgetting.suppressed import Kind, Suppressed, forgotten_key, keyed, users_of
from potstill.members import exchange_ids, hash64
from potstill.prompt import joined
from potstill.records import Json, canonical_json
from potstill.redaction import Redactor, redaction_key
from potstill.redaction.key import VARIABLE

SHORTEST_TEXT = 8  # characters: a shorter text is nobody's own
SHORTEST_SOUGHT, FEWEST_WORDS = 16, 3  # looked for within other texts only from here: a word stands in any vocabulary
SHORTEST_ID = 6  # an id is looked for within texts only from here; a shorter one stands for itself in an id's field
_KEY_FILE = "redaction.key"


def placeholders(work: Path, kind: Kind, value: str) -> set[str]:
    """The id as redaction writes it, under every key of the working folder: the id itself unless it is personal."""
    keys = {path.read_text().strip().encode() for path in sorted(work.rglob(_KEY_FILE))}
    keys |= {redaction_key(work)} if os.environ.get(VARIABLE) else set()
    if kind == "exchange":
        return {value}
    found = {value}
    for key in keys:
        shown = Redactor(key=key).exchange({"id": "", "metadata": {kind: value}})["metadata"][kind]
        found.add(str(shown))
    return found


@dataclass
class Wanted:
    """What must go. It grows while sources are read: an exchange of the user brings its id and its texts."""

    kind: Kind
    value: str
    key: bytes
    names: frozenset[str]
    known: Suppressed = field(default_factory=Suppressed)  # of an unfinished or an earlier request for the same
    ids: set[str] = field(default_factory=set)
    conversations: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    common: set[str] = field(default_factory=set)  # texts that others sent too
    beginnings: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, work: Path, kind: Kind, value: str, known: Suppressed | None = None) -> Wanted:
        return cls(kind, value, forgotten_key(work), frozenset(placeholders(work, kind, value)), known or Suppressed())

    @property
    def who(self) -> str:
        """The keyed hash that stands for the request in its record."""
        return keyed(self.key, self.kind, self.value)

    def marks(self) -> dict[str, list[str]]:
        """The hashes that suppress it: the names of what was asked for and every exchange found."""
        found: dict[str, set[str]] = {kind: set(getattr(self.known, kind)) for kind in ("user", "conversation")}
        found["exchange"] = set(self.known.exchange) | {keyed(self.key, "exchange", each) for each in self.ids}
        found[self.kind] = found.get(self.kind, set()) | {keyed(self.key, self.kind, each) for each in self.names}
        return {kind: sorted(each) for kind, each in found.items()}

    def has_id(self, row: object) -> bool:
        """Whether a row (or exchange) of this id must go."""
        return isinstance(row, str) and any(
            each in self.ids or self.known.names("exchange", each) for each in exchange_ids(row)
        )

    def takes(self, identity: str, request: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
        """Whether an exchange must go: named, of the user or conversation, or repeating one that goes as history."""
        conversation = str(metadata.get("conversation") or identity)
        if self.has_id(identity) or (self.kind == "exchange" and identity in self.names):
            return True
        if self.kind == "conversation" and conversation in self.names:
            return True
        if self.kind == "user" and self.names.intersection(users_of(request, metadata)):
            return True
        begins = self.beginnings.get(conversation, set())
        return bool(begins) and not begins.isdisjoint(_beginnings(request.get("messages") or []))

    def take(
        self, identity: str, messages: Sequence[Any], metadata: Mapping[str, Any], answers: Iterable[object] = ()
    ) -> bool:
        """Remember an exchange that must go; says whether its id or its conversation's turns are new."""
        conversation = str(metadata.get("conversation") or identity)
        known = self.beginnings.setdefault(conversation, set())
        new = identity not in self.ids or (bool(messages) and _hash(messages) not in known)
        self.ids.add(identity)
        self.conversations.add(conversation)
        if messages:
            known.add(_hash(messages))
        self.texts.update(said(messages))
        self.texts.update(each for each in answers if isinstance(each, str) and len(each) >= SHORTEST_TEXT)
        return new

    def hashes(self) -> tuple[set[int], set[int]]:
        """What `members.parquet` has for its users and its conversations."""
        users = {hash64(each) for each in self.names} if self.kind == "user" else set()
        conversations = {hash64(each) for each in self.names} if self.kind == "conversation" else set()
        return users, conversations

    def own_texts(self) -> set[str]:
        """The texts that nobody else sent word for word, and that are no word of the task."""
        return self.texts - self.common

    def sought_texts(self) -> set[str]:
        """Of these the ones long enough to be looked for within any file."""
        return {
            each for each in self.own_texts() if len(each) >= SHORTEST_SOUGHT and len(each.split()) >= FEWEST_WORDS
        }  # fmt: skip

    def sought_ids(self) -> set[str]:
        """The ids long enough to be told from other words."""
        return {each for each in {*self.ids, *self.names} if len(each) >= SHORTEST_ID}


def said(messages: Sequence[Any]) -> set[str]:
    """The texts of a conversation but its instructions, none so short that anybody may have said it."""
    found = set()
    for each in messages:
        if isinstance(each, Mapping) and each.get("role") not in ("system", "developer"):
            content = joined(each.get("content"))
            if isinstance(content, str) and len(content) >= SHORTEST_TEXT:
                found.add(content)
    return found


def answers_of(response: Mapping[str, Any]) -> list[object]:
    """The texts of the answers of a response."""
    return [(each.get("message") or {}).get("content") for each in response.get("choices") or [] if each]


def _beginnings(messages: Sequence[Any]) -> list[str]:
    return [_hash(messages[:size]) for size in range(1, len(messages) + 1)]


def _hash(messages: Sequence[Any]) -> str:
    spoken = [
        [each.get("role"), joined(each.get("content")) or "", each.get("tool_calls") or None]
        for each in messages
        if isinstance(each, Mapping)
    ]
    return hashlib.sha256(canonical_json(spoken).encode()).hexdigest()


def exchange_parts(line: Json) -> tuple[str, Mapping[str, Any], Mapping[str, Any]] | None:
    """Id, request and metadata of a line in the form of captured traffic; None for anything else."""
    identity, request, metadata = line.get("id"), line.get("request"), line.get("metadata") or {}
    if isinstance(identity, str) and isinstance(request, dict) and isinstance(metadata, dict):
        return identity, request, metadata
    return None
