"""What a key of this server is, and what may be done to the keys: pure functions, whatever they are stored in.

A key is 256 random bits, shown once. Stored is its sha256 alone: a slow, salted hash protects passwords because people
choose few of them; nobody can try 2^256 keys, fast hash or not, and a fast one can be looked up on every request
(NIST SP 800-63B, 5.1.1.2 and 5.1.2.2: slow hashing for what people memorise; secrets of 112 bits and more need none).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from potstill.errors import RecipeError
from potstill.records import Json

SCOPES = ("chat", "feedback", "batch", "metrics", "admin")
EVERY_SCOPE = frozenset(SCOPES)
# `sk-` is what secret scanners and our own redaction know a key by.
PREFIX = "sk-potstill-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class Key:
    """One key by its hash. Times are seconds since 1970; a limit or budget that is None is the server's default.

    Keys of one `name` (an old and a new one while it is rotated) share limits and budgets.
    """

    name: str
    tenant: str
    hash: str
    scopes: frozenset[str] = EVERY_SCOPE
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    daily_usd: float | None = None
    total_usd: float | None = None

    def state(self, now: float) -> str:
        """`live`, `expired` or `revoked`."""
        if self.revoked is not None and now >= self.revoked:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "live"

    def allows(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def to_json(self) -> Json:
        return asdict(self) | {"scopes": sorted(self.scopes)}

    @classmethod
    def from_json(cls, found: Json) -> Key:
        return cls(**(found | {"scopes": frozenset(found["scopes"])}))


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def sha256_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def seconds_of(span: str, what: str) -> float:
    """The seconds of `90d`, `12h`, `30m`, `45s` or `2w`; raises RecipeError."""
    found = _SPAN.fullmatch(span)
    if found is None:
        raise RecipeError([f"{what}: found {span!r}, expected a number with s, m, h, d or w behind it, as 90d"])
    return float(found[1]) * _UNITS_S[found[2]]


def added(keys: Sequence[Key], fresh: Key, now: float) -> list[Key]:
    """With `fresh`; raises RecipeError for a name that is no name or has a live key."""
    for what, name in (("name", fresh.name), ("tenant", fresh.tenant)):
        if not _NAME.fullmatch(name):
            raise RecipeError([f"keys: {what}: found {name!r}, expected at most 64 of A-Z a-z 0-9 . _ @ -"])
    unknown = sorted(fresh.scopes - EVERY_SCOPE)
    if unknown or not fresh.scopes:
        found = ", ".join(unknown) or "none"
        raise RecipeError([f"keys: scopes: found {found}, expected some of {', '.join(SCOPES)}"])
    if any(each.name == fresh.name and each.state(now) == "live" for each in keys):
        raise RecipeError([f"keys: {fresh.name}: has a live key; rotate it, revoke it, or choose another name"])
    return [*keys, fresh]


def revoked(keys: Sequence[Key], name: str, now: float) -> list[Key]:
    """With every live key of this name revoked; raises RecipeError where there is none."""
    _live(keys, name, now)
    return [replace(each, revoked=now) if each.name == name and each.state(now) == "live" else each for each in keys]


def rotated(keys: Sequence[Key], name: str, fresh_hash: str, now: float, grace_s: float) -> list[Key]:
    """With a new key like the newest live one, whose old ones end after `grace_s`; raises RecipeError."""
    newest = _live(keys, name, now)[-1]
    end = now + grace_s
    fresh = replace(newest, hash=fresh_hash, created=now)
    ending = [
        replace(each, expires=end if each.expires is None else min(end, each.expires))
        if each.name == name and each.state(now) == "live"
        else each
        for each in keys
    ]
    return [*ending, fresh]


def _live(keys: Sequence[Key], name: str, now: float) -> list[Key]:
    found = sorted(
        (each for each in keys if each.name == name and each.state(now) == "live"), key=lambda each: each.created
    )
    if not found:
        names = sorted({each.name for each in keys if each.state(now) == "live"})
        raise RecipeError([f"keys: {name}: no live key of this name; there are: {', '.join(names) or 'none'}"])
    return found
