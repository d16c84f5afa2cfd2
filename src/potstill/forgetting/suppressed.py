"""Who and what was forgotten, as keyed hashes: `distill` reads no exchange that these name.

`WORK/forgotten/` holds a record a request (`<time>.json`) and `key`, the secret behind the hashes, made once and
readable by its owner alone. A record never holds an id or a text: with the key, a guess at an id can be confirmed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.errors import DamagedInput
from potstill.records import Exchange, Json, canonical_json

Kind = Literal["user", "conversation", "exchange"]
KINDS: tuple[Kind, ...] = ("user", "conversation", "exchange")
FOLDER, KEY = "forgotten", "key"
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')


def forgotten_key(work: Path) -> bytes:
    """The working folder's key, made if absent; two processes that come at once get the same."""
    path = work / FOLDER / KEY
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".key.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(made, path)
        except FileExistsError:
            pass
        finally:
            made.unlink()
    return path.read_bytes().strip()


def keyed(key: bytes, kind: str, value: str) -> str:
    """32 hex digits that stand for an id: BLAKE2b under the key (RFC 7693)."""
    return hashlib.blake2b(f"{kind}\0{value}".encode("utf-8", "surrogatepass"), key=key, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Suppressed:
    """The hashes of all that was forgotten. Cheap to ask; an empty one is false."""

    key: bytes = b""
    user: frozenset[str] = frozenset()
    conversation: frozenset[str] = frozenset()
    exchange: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.user or self.conversation or self.exchange)

    def names(self, kind: Kind, value: object) -> bool:
        """Whether this id was forgotten."""
        known: frozenset[str] = getattr(self, kind)
        return bool(known) and value not in (None, "") and keyed(self.key, kind, str(value)) in known

    def holds(self, exchange: Exchange) -> bool:
        """Whether an exchange was forgotten: by its own id, its conversation's or its user's."""
        return (
            self.names("exchange", exchange.id)
            or self.names("conversation", exchange.conversation)
            or any(self.names("user", each) for each in users_of(exchange.request, exchange.metadata))
        )

    def holds_text(self, text: bytes) -> bool:
        """Whether a damaged line names anything forgotten as one of its quoted words."""
        return bool(self) and any(
            self.names(kind, word) for each in _QUOTED.findall(text) for kind in KINDS if (word := _word(each))
        )


def _word(quoted: bytes) -> str:
    try:
        return str(json.loads(b'"' + quoted + b'"', strict=False))
    except ValueError:
        return quoted.decode("utf-8", "replace")


def users_of(request: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    """Every id of a user that an exchange carries."""
    found = (metadata.get("user"), request.get("user"), request.get("safety_identifier"))
    return [str(each) for each in found if each not in (None, "")]


def records(work: Path) -> Iterator[tuple[Path, Json]]:
    """Every record of a working folder, oldest first; raises DamagedInput for one that cannot be read."""
    for path in sorted((work / FOLDER).glob("*.json")):
        try:
            yield path, json.loads(path.read_text())
        except ValueError as fault:
            raise DamagedInput(
                f"{path}: not a record of what was forgotten ({fault}); restore it: without it forgotten rows would be "
                "read again"
            ) from fault


def suppressed(work: Path, recipe: str | None = None) -> Suppressed:
    """All that was forgotten in a working folder; with `recipe`, only by requests that touched this recipe."""
    marks: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for _, record in records(work):
        if recipe is None or recipe in record["recipes"]:
            for kind in KINDS:
                marks[kind].update(record["marks"].get(kind, ()))
    if not any(marks.values()):
        return Suppressed()
    return Suppressed(forgotten_key(work), *(frozenset(marks[kind]) for kind in KINDS))


def suppressed_digest(found: Suppressed) -> str:
    """What a dataset's key changes by when something was forgotten that it may hold."""
    lists: Iterable[Any] = [sorted(getattr(found, kind)) for kind in KINDS]
    return hashlib.sha256(canonical_json(list(lists)).encode()).hexdigest()
