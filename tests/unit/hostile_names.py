"""Names as an attacker would write them, the same ones every time, and a look at what stands outside."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from potstill.errors import PotstillError

COUNT = 2500

CLIMBS = (
    "../", "..\\", "..//", "....//", "..././", ".../", "./../", "%2e%2e%2f", "..%2f", "%2e%2e/",
    "..%c0%af", "..%5c", "．．／", "‥/", "‥∕", "..∕", "..⁄", "..／", "..＼", "․․/", "../\u200b",
    ".\u200b./", "..\u202e/", "..\u0000/", ". ./", ".. /",
)  # fmt: skip
ROOTS = (
    "/", "//", "\\", "\\\\", "C:", "C:\\", "c:/", "\\\\?\\C:\\", "\\\\host\\share\\", "file:///",
    "~/", "~root/", "$HOME/", "link/", "link/../", "inner/../../", "inner/link/",
)  # fmt: skip
ENDS = (
    "sentinel.txt", "outside/sentinel.txt", "outside", "con", "NUL.txt", "com1.json", "LPT9",
    "aux.tar.gz", "COM¹", "a:b", "name.", "name ", " name", "-rf", "~", ".", "..", "...", "",
    "\x00", "a\x00.gguf", "a\nb", "a\rb", "\x1b[2Jx", "\x7f", "\u202etxt.exe", "\ufeffx",
    "a\u200bb", "e\u0301", "ﬁle", "Ⅳ", "\udcff", "x" * 300, "長" * 100, "a/b/" * 300, "*", "?",
    "|cat", '"x"', "<x>", "`id`", "$(id)", "a;b", "manifest.json", "model.sig", ".git/config",
    ".ssh/id",
)  # fmt: skip


def hostile_names(count: int, outside: Path, seed: int = 0) -> list[str]:
    """`count` different names: each simple one, then combinations, many of which lead to `outside` if followed."""
    chance = random.Random(seed)
    made = dict.fromkeys([*ENDS, str(outside), str(outside / "new"), outside.as_uri()])
    for depth in range(1, 9):
        for climb in CLIMBS:
            made[climb * depth + "outside/sentinel.txt"] = None
            made["a/" + climb * (depth + 1) + "outside/new"] = None
    while len(made) < count:
        parts = [chance.choice(ROOTS)] if chance.random() < 0.4 else []
        parts += chance.choices(CLIMBS, k=chance.randint(0, 5))
        parts += [chance.choice(["", "a/", "models/", "."]), chance.choice([*ENDS, str(outside)])]
        if chance.random() < 0.2:
            chance.shuffle(parts)
        made["".join(parts)] = None
    return list(made)


def standing(folder: Path, apart: Path) -> dict[str, str]:
    """Everything under `folder` that is not under `apart`: kind, mode, change time and content."""

    def walk(where: Path) -> Iterator[Path]:
        for each in where.iterdir():
            if each != apart:
                yield each
                if each.is_dir() and not each.is_symlink():
                    yield from walk(each)

    found = {}
    for path in walk(folder):
        state = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        when = 0 if path.is_dir() and apart.is_relative_to(path) else state.st_mtime_ns
        found[str(path.relative_to(folder))] = f"{state.st_mode:o} {when} {content}"
    return found


class Area:
    """A working folder with a link that leads out, and beside it what must not change."""

    def __init__(self, root: Path) -> None:
        self.root, self.work, self.outside = root, root / "area" / "work", root / "outside"
        for folder in (self.work / "inner", self.outside):
            folder.mkdir(parents=True)
        (self.outside / "sentinel.txt").write_text("as it was")
        (self.outside / ".ssh").mkdir()
        (self.outside / ".ssh" / "id").write_text("secret")
        (self.root / "area" / "sentinel.txt").write_text("as it was")
        for link in (self.work / "link", self.work / "inner" / "link"):
            link.symlink_to(self.outside)
        self.names = hostile_names(COUNT, self.outside)
        assert len(set(self.names)) >= 2000

    def survey(self) -> dict[str, str]:
        return standing(self.root, self.work)

    def attack(self, entry: Callable[[str], Path | None]) -> tuple[int, int]:
        """Every name through one entry point; what it gives back is written to. Returns refused and taken."""
        before, refused = self.survey(), 0
        for name in self.names:
            try:
                path = entry(name)
            except (PotstillError, ValidationError):
                refused += 1
                continue
            if path is not None:
                assert path.resolve().is_relative_to(self.work.resolve()), ascii(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.is_dir():
                    path.write_bytes(b"written")
        assert self.survey() == before
        return refused, len(self.names) - refused
