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

from potstill.prompt import joined
from potstill.records import Message, canonical_json

PERMUTATIONS = 128
SHINGLE = 5  # bytes: fits into one 64-bit word, and tells sentences apart while a changed word costs few shingles
SEED = 20260105
MISS = 1e-3  # a pair at the threshold is missed by the bands with at most this probability
BATCH = 64  # texts hashed at a time: their shingles stay in the processor's cache (tried: 20 to 100 is best)
_SPACE = re.compile(r"\W+")
_ASCII = bytes(each if chr(each).isalnum() or chr(each) == "_" else 32 for each in range(256)).lower()


def hash64(text: str) -> int:
    """A stable 64-bit hash, never 0 (which stands for nothing)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") | 1


def share_of(seed: int, group: str) -> float:
    """A number in [0, 1) that depends on seed and group alone: adding rows moves no other group."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


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


def shingle_hashes(texts: Sequence[bytes]) -> tuple[Any, Any]:
    """64-bit hashes of all shingles of folded texts, one behind the other, and the offsets at which each text's begin.

    A text shorter than a shingle has one, padded. Shapes (shingles,) and (texts + 1,), both uint64.
    """
    import numpy as np

    padded = [each.ljust(SHINGLE, b"\0") for each in texts]
    joined_bytes = np.frombuffer(b"".join(padded), np.uint8)
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    ends = np.cumsum(lengths)
    word = joined_bytes[SHINGLE - 1 :].astype(np.uint64)
    size = len(word)
    for at in range(SHINGLE - 2, -1, -1):
        word <<= np.uint64(8)
        word |= joined_bytes[at : at + size]
    word *= np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing spreads the five bytes over the word
    word ^= word >> np.uint64(29)
    keep = np.ones(size, bool)
    for back in range(1, SHINGLE):  # shingles that would span two texts
        keep[ends[:-1] - back] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - SHINGLE + 1)]).astype(np.uint64)
    return word[keep], offsets


def signatures(texts: Sequence[str]) -> Any:
    """MinHash signatures, shape (texts, 128), uint32."""
    import numpy as np
    from rensa import RMinHash

    parts = [np.zeros((0, PERMUTATIONS), np.uint32)]
    for start in range(0, len(texts), BATCH):
        hashes, offsets = shingle_hashes([folded(each) for each in texts[start : start + BATCH]])
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

    one, other = (np.unique(shingle_hashes([folded(each)])[0]) for each in (a, b))
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
