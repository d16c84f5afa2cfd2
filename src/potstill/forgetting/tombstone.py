"""`forgotten.json` in a finished folder: what must be done again, and which files lost rows since they were hashed.

It stands outside the manifest's list, so that the folder keeps its digest, by which everything made from it names it.
Files that were struck are verified against the tombstone instead. Its seal (HMAC-SHA-256 under the working folder's
key) binds it to that digest: without the key nobody can pass other files off as struck ones.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from potstill.errors import GateRefused
from potstill.forgetting.suppressed import FOLDER, KEY
from potstill.progress import say
from potstill.records import Json, canonical_json

TOMBSTONE = "forgotten.json"
Again = Literal["distill", "train", "evaluate", "nothing"]
WORDS: Mapping[Again, str] = {
    "distill": "holds rows that were forgotten since; it must be made again",
    "train": "learnt from rows that were forgotten since; it must be retrained",
    "evaluate": "stands on rows that were forgotten since; it must be evaluated again",
    "nothing": "quoted rows that were forgotten since",
}
ORDER: tuple[Again, ...] = ("nothing", "evaluate", "distill", "train")


@dataclass(frozen=True, slots=True)
class Tombstone:
    """`again`: what must be done; `files`: struck files with sha256 and size (null: deleted); `striking`: begun."""

    again: Again
    refuse: bool
    records: tuple[str, ...]
    striking: tuple[str, ...] = ()
    files: Mapping[str, Json | None] = field(default_factory=dict)

    @property
    def words(self) -> str:
        return f"{WORDS[self.again]} (forgotten/{', forgotten/'.join(self.records)})"


def read_tombstone(folder: Path) -> Tombstone | None:
    """The folder's tombstone, seal unchecked; None where there is none or it cannot be read."""
    try:
        data = json.loads((folder / TOMBSTONE).read_text())
        return Tombstone(
            data["again"], data["refuse"], tuple(data["records"]), tuple(data["striking"]), data["files"]
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_tombstone(folder: Path, digest: str, stone: Tombstone, key: bytes) -> None:
    """Write it, sealed for the folder of this digest."""
    from potstill.manifest import write_atomically

    data = asdict(stone)
    write_atomically(folder / TOMBSTONE, json.dumps(data | {"seal": _seal(data, digest, key)}, indent=1).encode())


def _seal(data: Json, digest: str, key: bytes) -> str:
    body = {name: data[name] for name in ("again", "refuse", "records", "striking", "files")}
    return hmac.new(key, canonical_json([digest, body]).encode(), hashlib.sha256).hexdigest()


def struck_files(folder: Path, digest: str) -> Mapping[str, Json | None]:
    """What a folder's files are since rows were struck from it, by name; empty unless the seal is right."""
    try:
        data = json.loads((folder / TOMBSTONE).read_text())
        key = _key_above(folder)
        if key is None or not hmac.compare_digest(str(data["seal"]), _seal(data, digest, key)):
            return {}
        found: Mapping[str, Json | None] = data["files"]
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _key_above(folder: Path) -> bytes | None:
    for each in folder.resolve().parents:
        path = each / FOLDER / KEY
        if path.is_file():
            return path.read_bytes().strip()
    return None


def heed(folder: Path, what: str) -> None:
    """Say that a folder must be made again, if it must; raises GateRefused where whoever forgot wants it refused."""
    stone = read_tombstone(folder)
    if stone is None or stone.again == "nothing":
        return
    if stone.refuse:
        raise GateRefused(what, [f"it {stone.words}"])
    say(f"{what}: warning: it {stone.words}")
