"""Who is asking: `Authorization: Bearer KEY` against the keys that the recipe names. No keys: everybody (loopback)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import RecipeError
from potstill.serving.errors import RequestRefused
from potstill.serving.http import Http
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.call import Call
    from potstill.serving.server import Server

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_HASHED = re.compile(r"([0-9a-f]{64})(?:\s+(\S.*))?")


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of the keys by the sha256 (hex) of the key: the keys themselves are not held."""

    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, entries: Sequence[str]) -> Keys:
        """Read environment variables and files; raises RecipeError naming every entry that gives no key."""
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
        return cls(names)


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


def sha256_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def caller(http: Http, keys: Keys, scope: str = "") -> str:
    """The name of the caller's key ("" when none are asked for); raises RequestRefused 401.

    A key of the recipe has every scope.
    """
    if not keys.names:
        return ""
    scheme, _, secret = http.header(b"authorization").partition(" ")
    # Looking up a hash leaks no key by timing: nobody can choose the digits of their key's sha256 one by one.
    name = keys.names.get(sha256_of(secret.strip())) if scheme.lower() == "bearer" else None
    if name is None:
        found = "a key that is not known here" if secret else "no key"
        raise RequestRefused(
            401, f"found {found}; send `Authorization: Bearer KEY` with a key of this server", code="invalid_api_key"
        )
    return name


class Authenticate(Step):
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def before(self, call: Call) -> None:
        """Fill `call.key`."""
        call.key = caller(call.http, self._keys)


def make(server: Server) -> Step | None:
    return Authenticate(server.keys) if server.keys.names else None
