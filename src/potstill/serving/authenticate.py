"""Who is asking: `Authorization: Bearer KEY` against the keys of the recipe and those that `potstill keys` made.

No keys at all: everybody (loopback). A look is one sha256 and one dictionary, in memory; a thread looks twice a second
whether the stored keys have changed, so a revocation holds within a second and needs no restart.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from potstill.errors import RecipeError
from potstill.progress import say
from potstill.serving.errors import RequestRefused
from potstill.serving.http import Http
from potstill.serving.key_records import Key, sha256_of
from potstill.serving.key_store import KeyStore, KeyStoreAway
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.call import Call
    from potstill.serving.server import Server

MARK = "key"
_LOOK_S = 0.5
_SAID = {"unknown": "not known here", "expired": "expired", "revoked": "revoked"}
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_HASHED = re.compile(r"([0-9a-f]{64})(?:\s+(\S.*))?")


class Keys:
    """Every key by its sha256 (hex): the keys themselves are not held.

    `fixed` are those of the recipe, without an end, in every scope; those of `store` come and go while a server runs.
    """

    def __init__(self, fixed: Mapping[str, Key] | None = None, store: KeyStore | None = None) -> None:
        self._fixed, self.store = dict(fixed or {}), store
        self._entries: tuple[str, ...] | None = None
        self._stored: dict[str, Key] = {}
        self._version = 0
        self._watchers = 0
        self._stop = threading.Event()
        self._all = self._fixed
        if store is not None:
            self.refresh()
            store.close()  # what is open now would be shared with workers that are forked; the watch opens its own

    @classmethod
    def load(cls, entries: Sequence[str], store: KeyStore | None = None) -> Keys:
        """Read variables, files and the store; raises RecipeError naming every entry that gives no key."""
        keys = cls(_fixed(entries), store)
        keys._entries = tuple(entries)
        return keys

    def take(self, entries: Sequence[str]) -> None:
        """Read the recipe's entries anew, where they are others than before; raises RecipeError and keeps the old."""
        if self._entries is not None and tuple(entries) != self._entries:
            self._fixed = _fixed(entries)
            self._entries = tuple(entries)
            self._all = self._stored | self._fixed

    @property
    def asked_for(self) -> bool:
        """Whether a caller must show a key. Keys that have all been revoked leave the door shut, not open."""
        return bool(self._all)

    @property
    def names(self) -> dict[str, str]:
        """Name of every live key by its hash."""
        now = time()
        return {each.hash: each.name for each in self._all.values() if each.state(now) == "live"}

    def of(self, secret: str) -> Key | None:
        """The key that this is, revoked or expired though it may be."""
        # Looking up a hash leaks no key by timing: nobody can choose the digits of their key's sha256 one by one.
        return self._all.get(sha256_of(secret))

    def by_hash(self, digest: str) -> Key | None:
        """The key of this sha256, revoked or expired though it may be."""
        return self._all.get(digest)

    def refresh(self) -> None:
        """Read the stored keys where they have changed; raises KeyStoreAway and keeps what was known."""
        if self.store is None:
            return
        version = self.store.version()
        if version != self._version:
            self._stored = {each.hash: each for each in self.store.all()}
            self._all = self._stored | self._fixed
            self._version = version

    def watch(self) -> None:
        """Refresh from now on, until `unwatch` has been called as often as this."""
        self._watchers += 1
        if self.store is not None and self._watchers == 1:
            self._stop = threading.Event()
            threading.Thread(target=self._look, args=(self._stop,), name="potstill-keys", daemon=True).start()

    def unwatch(self) -> None:
        self._watchers -= 1
        if self._watchers == 0:
            self._stop.set()

    def _look(self, stop: threading.Event) -> None:
        away = False
        while not stop.wait(_LOOK_S):
            try:
                self.refresh()
                away = False
            except Exception as fault:  # a key that was good stays good while its store is away
                if not away:
                    what = str(fault) if isinstance(fault, KeyStoreAway) else type(fault).__name__
                    say(f"serve: keys: {what}; the keys known so far hold, changes are not seen")
                away = True


def _fixed(entries: Sequence[str]) -> dict[str, Key]:
    names: dict[str, str] = {}
    faults: list[str] = []
    for entry in entries:
        if _VARIABLE.fullmatch(entry):
            secret = os.environ.get(entry, "")
            if not secret:
                faults.append(f"serve.keys: environment variable {entry} is not set; export it or remove the entry")
            names[sha256_of(secret)] = entry
        else:
            names.update(_from_file(Path(entry), faults))
    if faults:
        raise RecipeError(faults)
    return {digest: Key(name, name, digest) for digest, name in names.items()}


def _from_file(path: Path, faults: list[str]) -> dict[str, str]:
    """Lines of `sha256 name`; blank lines and those that begin with # are passed over."""
    names: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except OSError as fault:
        faults.append(f"serve.keys: {path}: cannot be read ({fault.strerror}); give a file of `sha256 name` lines")
        return names
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _HASHED.fullmatch(line.strip())
        if found is None:
            faults.append(f"serve.keys: {path}:{number}: expected 64 hex digits (sha256 of the key) and a name")
        else:
            names[found[1]] = found[2] or f"{path.name}:{number}"
    if not names and not faults:
        faults.append(f"serve.keys: {path}: holds no key")
    return names


def identify(http: Http, keys: Keys, scope: str = "") -> Key | None:
    """The caller's key, None when none are asked for; raises RequestRefused 401, or 403 for a scope that it lacks."""
    if not keys.asked_for:
        return None
    scheme, _, secret = http.header(b"authorization").partition(" ")
    secret = secret.strip() if scheme.lower() == "bearer" else ""
    key = keys.of(secret) if secret else None
    state = "unknown" if key is None else key.state(time())
    if key is None or state != "live":
        found = f"a key that is {_SAID[state]}" if secret else "no key"
        raise RequestRefused(
            401, f"found {found}; send `Authorization: Bearer KEY` with a key of this server", code="invalid_api_key"
        )
    if scope and not key.allows(scope):
        message = f"key {key.name} may not do this: it has {', '.join(sorted(key.scopes))}, expected {scope}"
        raise RequestRefused(403, message, kind="permission_error", code="insufficient_scope")
    return key


def caller(http: Http, keys: Keys, scope: str = "") -> str:
    """The name of the caller's key ("" when none are asked for); raises RequestRefused 401 or 403."""
    key = identify(http, keys, scope)
    return "" if key is None else key.name


class Authenticate(Step):
    def __init__(self, keys: Keys, entries: Sequence[str]) -> None:
        self._keys, self._entries = keys, entries

    async def before(self, call: Call) -> None:
        """Fill `call.key` and `call.tenant`; the key itself is in the marks, for limits and budgets."""
        key = identify(call.http, self._keys, "chat")
        if key is not None:
            call.key, call.tenant = key.name, key.tenant
            call.marks[MARK] = key

    async def start(self) -> None:
        self._keys.take(self._entries)
        self._keys.watch()

    async def close(self) -> None:
        self._keys.unwatch()


def make(server: Server) -> Step | None:
    wanted = server.keys.asked_for or server.keys.store is not None or server.settings.keys
    return Authenticate(server.keys, server.settings.keys) if wanted else None
