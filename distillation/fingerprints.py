"""What two prompts are compared by: hashes for equality, MinHash signatures for likeness.

Shingles are character 5-grams of the text in lower case with everything but letters and digits folded to one space.
Signatures by `rensa` (R-MinHash, 128 permutations, 32 bits each); bands by locality-sensitive hashing (Indyk and
Motwani 1998; Leskovec et al., Mining of Massive Datasets, 3.4).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from potstill.members import hash64 as hash64
from potstill.prompt import joined
from potstill.records import Message, canonical_json

PERMUTATIONS = 128
SHINGLE = 5  # bytes: fits into one 64-bit word, and tells sentences apart while a changed word costs few shingles
SEED = 20260105
MISS = 1e-3  # a pair at the threshold is missed by the bands with at most this probability
BATCH = 64  # texts hashed at a time: their shingles stay in the processor's cache (tried: 20 to 100 is best)
_SPACE = re.compile(r"\W+")
_BEHIND = "  "
_ASCII = bytes(each if chr(each).isalnum() or chr(each) == "_" else 32 for each in range(256)).lower()


def share_of(seed: int, group: str) -> float:
    """A number in [0, 1) that depends on seed and group alone: adding rows moves no other group."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def shares_of(seed: int, hashes: Any) -> Any:
    """The same for an array of 64-bit hashes of groups: another mixing (SplitMix64), the same promise."""
    import numpy as np

    mixed = hashes ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) / 2.0**64


def prompt_text(messages: Sequence[Message]) -> str:
    """What two prompts are compared by: every turn with its role (tool calls included), no instructions removed."""
    lines = []
    for each in messages:
        content, calls = each.get("content"), each.get("tool_calls")
        text = content if isinstance(content, str) else joined(content) or ""
        lines.append(f"{each['role']}: {text}" + (_calls_text(calls) if calls else ""))
    return "\n".join(lines)


def _calls_text(calls: Sequence[Any]) -> str:
    return canonical_json([call.get("function") for call in calls])


def folded(text: str) -> bytes:
    """The text in lower case, everything but letters and digits made one space."""
    if text.isascii():
        return b" ".join(text.encode().translate(_ASCII).split())
    return _SPACE.sub(" ", text.casefold()).strip().encode()


def shingle_hashes(texts: Sequence[str]) -> tuple[Any, Any]:
    """64-bit hashes of all shingles of folded texts, one behind the other, and the offsets at which each text's begin.

    A text shorter than a shingle has one, padded with zero bytes. Shapes (shingles,) and (texts + 1,), both uint64.
    """
    import numpy as np

    data, lengths = _all_folded(texts)
    size = max(len(data) - SHINGLE + 1, 0)
    # Every window of eight bytes at once, of which five are kept: the bytes are padded so that the last one has eight.
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    word = np.ndarray((size,), "<u8", padded, strides=(1,)) & np.uint64(2 ** (8 * SHINGLE) - 1)
    word *= np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing spreads the five bytes over the word
    word ^= word >> np.uint64(29)
    ends = np.cumsum(lengths)
    keep = np.ones(size, bool)
    for back in range(1, SHINGLE):  # shingles that would span two texts
        keep[ends[:-1] - back] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - SHINGLE + 1)]).astype(np.uint64)
    return word[keep], offsets


def _all_folded(texts: Sequence[str]) -> tuple[Any, Any]:
    """What `folded` gives for each, padded to a shingle at least, as one array of bytes and the length of each."""
    import numpy as np

    if not all(map(str.isascii, texts)):
        parts = [folded(each).ljust(SHINGLE, b"\0") for each in texts]
        return np.frombuffer(b"".join(parts), np.uint8), np.fromiter(map(len, parts), np.int64, len(parts))
    # Two spaces behind every text, of which the rule below keeps one, so that texts never run into each other; no loop
    # over words, which would cost more than all the rest.
    data = np.frombuffer("".join([each + _BEHIND for each in texts]).encode().translate(_ASCII), np.uint8)
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + len(_BEHIND))
    starts = np.concatenate([[0], ends[:-1]])
    space = data == 32
    keep = np.ones(len(data), bool)
    keep[1:] = ~(space[1:] & space[:-1])
    keep[starts] = ~space[starts]
    kept = np.add.reduceat(keep, starts, dtype=np.int64) if len(texts) else np.zeros(0, np.int64)
    if (kept <= SHINGLE).any():
        return _padded(data[keep], kept)
    return _without_last(data[keep], kept)  # the last byte that each text kept is a space


def _without_last(data: Any, kept: Any) -> tuple[Any, Any]:
    import numpy as np

    last = np.ones(len(data), bool)
    last[np.cumsum(kept) - 1] = False
    return data[last], kept - 1


def _padded(data: Any, kept: Any) -> tuple[Any, Any]:
    """The slow way, for batches with a text shorter than a shingle."""
    import numpy as np

    parts = [each.tobytes().rstrip(b" ").ljust(SHINGLE, b"\0") for each in np.split(data, np.cumsum(kept)[:-1])]
    return np.frombuffer(b"".join(parts), np.uint8), np.fromiter(map(len, parts), np.int64, len(parts))


def signatures(texts: Sequence[str]) -> Any:
    """MinHash signatures, shape (texts, 128), uint32."""
    import numpy as np
    from rensa import RMinHash

    parts = [np.zeros((0, PERMUTATIONS), np.uint32)]
    for start in range(0, len(texts), BATCH):
        hashes, offsets = shingle_hashes(texts[start : start + BATCH])
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, SEED)
        parts.append(np.array(matrix.to_rows(), dtype=np.uint32))
    return np.concatenate(parts)


def bands_for(threshold: float) -> tuple[int, int]:
    """Bands and rows a band: as many rows as miss a pair of that Jaccard with probability under MISS.

    Longer bands collide less by chance; (1 - t^rows)^bands is what they miss.
    """
    for rows in range(PERMUTATIONS, 0, -1):
        bands = PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= MISS:
            return bands, rows
    return PERMUTATIONS, 1


def band_keys(signature: Any, threshold: float) -> Any:
    """One 64-bit key a band and text, shape (bands, texts): texts that share a key are candidates."""
    import numpy as np

    bands, rows = bands_for(threshold)
    keys = np.zeros((bands, len(signature)), np.uint64)
    for band in range(bands):
        for column in range(band * rows, (band + 1) * rows):
            keys[band] = (keys[band] ^ signature[:, column].astype(np.uint64)) * np.uint64(0x100000001B3)  # FNV-1a
            keys[band] ^= keys[band] >> np.uint64(31)
    return keys


def jaccard(a: str, b: str) -> float:
    """Jaccard similarity of two texts' shingles (of their 64-bit hashes)."""
    import numpy as np

    one, other = (np.unique(shingle_hashes([each])[0]) for each in (a, b))
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
