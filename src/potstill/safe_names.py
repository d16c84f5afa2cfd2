"""Names from outside that become paths: the one place that decides which may.

A recipe, a manifest, a registry, a model's index and a command line all bring names. `safe_name` takes one component,
`safe_relative` one or more, and neither gives anything back that could stand elsewhere, on Linux, macOS or Windows or
after Unicode normalisation. `inside` joins it to a folder that came from outside as well, and follows no link out of it
(links in a user's own folders, say to a larger disk, are the user's affair, and so are the hub cache's).

What is refused follows CWE-22 and its children (relative and absolute paths, drive letters, alternate streams, reserved
device names, trailing dots and spaces) and UAX 15 (a name must be its own NFKC form, so that `．．／` is not `../` for
whoever normalises later). Letters that merely look alike (Latin a, Cyrillic а) name different files and escape nothing.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from potstill.errors import UnsafeName

MOST_BYTES = 240  # 255 on all usual file systems, less what `.partial` and the like put behind it
MOST_BYTES_WHOLE = 1000
PUNCTUATION = frozenset(" !#$%&'()+,-.;=@[]^_`{}~")  # ASCII that no file system and no archive treats as its own
LETTERS = ("L", "M", "N")  # Unicode's letters, marks and numbers; all else is a separator, a control or a look-alike
RESERVED = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"}
    | {f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"}
)


def safe_name(name: object, what: str = "name") -> str:
    """The name itself where it can be one component of a path; raises UnsafeName saying what about it cannot."""
    fault = fault_of(name)
    if fault is not None:
        raise UnsafeName(f"{what}: found {_shown(name)}, {fault}; expected a plain file name, so rename it")
    return str(name)


def safe_relative(name: object, what: str = "file name") -> str:
    """One or more safe components joined by `/`, as they came; raises UnsafeName for anything else."""
    fault = "which names nothing" if not isinstance(name, str) or not name else None
    text = str(name)
    fault = fault or next((found for found in map(fault_of, text.split("/")) if found is not None), None)
    if fault is None and len(text.encode()) > MOST_BYTES_WHOLE:
        fault = f"which is {len(text.encode())} bytes, expected at most {MOST_BYTES_WHOLE}"
    if fault is not None:
        raise UnsafeName(f"{what}: found {_shown(name)}, {fault}; expected the name of a file inside its folder")
    return text


def inside(folder: Path, name: object, what: str = "file name") -> Path:
    """`folder / name` for a folder whose content came from outside; nothing need be there yet.

    Raises UnsafeName for a name that `safe_relative` refuses, and for one that a symbolic link in the folder leads out.
    """
    path = folder / safe_relative(name, what)
    try:
        stands = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        stands = False
    if not stands:
        raise UnsafeName(f"{what}: {_shown(name)} stands outside the folder {folder}: a symbolic link leads there")
    return path


def fault_of(name: object) -> str | None:
    """What keeps a name from being one component of a path, as a clause; None when nothing does."""
    if not isinstance(name, str):
        return "which is no text"
    if not name or not name.strip(". "):
        return "which is empty or made of dots"
    if any(character in name for character in "/\\:"):
        return "which holds a separator, a drive letter or a stream"
    for character in name:
        if character not in PUNCTUATION and (
            unicodedata.category(character)[0] not in LETTERS or (character.isascii() and not character.isalnum())
        ):
            return f"which holds U+{ord(character):04X}"
    if unicodedata.normalize("NFKC", name) != name:
        return "which Unicode normalisation would turn into another name"
    if name[0] in "~- " or name[-1] in ". ":
        return f"which begins with {name[0]!r}" if name[0] in "~- " else f"which ends with {name[-1]!r}"
    if name.partition(".")[0].rstrip(" ").casefold() in RESERVED:
        return "which Windows reserves for a device"
    if len(name.encode()) > MOST_BYTES:
        return f"which is {len(name.encode())} bytes, expected at most {MOST_BYTES}"
    return None


def _shown(name: object) -> str:
    """Short and printable: a hostile name must not write to the terminal by way of its own refusal."""
    shown = ascii(name)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
