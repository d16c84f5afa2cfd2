"""What is counted of an exchange: how long, in which script, about what, under which prompt, answered how.

Each feature is one of a few categories, so that a stream is described by counts alone and no text is kept. Training
rows and live exchanges go through the same functions, after the prompt rule, or the two could not be compared.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from potstill.prompt import INSTRUCTING, joined
from potstill.records import Json, Message
from potstill.tasks import Parsed, Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

LENGTHS = (1, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384, 32768)
TURNS = (2, 3, 4, 6, 10, 20)
LIKENESS = tuple(round(0.05 * step, 2) for step in range(1, 20))
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
READ_CHARACTERS = 2000  # of a text, for its script and subject
DIMENSIONS = 256
OTHER = "(other)"
INVALID = "(invalid)"
NONE = "(none)"
_WORD = re.compile(r"\w+")
_SCRIPTS = (
    (0x0250, "latin"), (0x0370, NONE), (0x0400, "greek"), (0x0530, "cyrillic"), (0x0590, NONE), (0x0600, "hebrew"),
    (0x0780, "arabic"), (0x0900, NONE), (0x0E00, "indic"), (0x0E80, "thai"), (0x1100, NONE), (0x1200, "hangul"),
    (0x1E00, NONE), (0x2000, "latin"), (0x3040, NONE), (0x3100, "kana"), (0x3400, NONE), (0xA000, "han"),
    (0xAC00, NONE), (0xD7B0, "hangul"),
)  # fmt: skip
_SCRIPT_ENDS = [end for end, _ in _SCRIPTS]
SCRIPTS = ("latin", "greek", "cyrillic", "hebrew", "arabic", "indic", "thai", "hangul", "kana", "han", NONE)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of one exchange until it is counted: its newest user text cut short, and how much there was."""

    text: str
    characters: int
    turns: int
    prompt: str


def seen_of(messages: Sequence[Message]) -> Seen:
    """Of the messages that the student sees (after the prompt rule)."""
    text, said = "", []
    for message in messages:
        role = message.get("role")
        if role == "user":
            content = joined(message.get("content"))
            text = content if isinstance(content, str) else ""
        elif role in INSTRUCTING:
            said.append(str(joined(message.get("content"))))
    prompt = hashlib.sha256("\n".join(said).encode()).hexdigest()[:8] if said else NONE
    return Seen(text[:READ_CHARACTERS], len(text), len(messages) - len(said), prompt)


def bin_of(value: float, edges: Sequence[float]) -> int:
    """The place of a value among the bins between the edges; one bin more than there are edges."""
    return bisect_right(edges, value)


def bin_names(edges: Sequence[float]) -> list[str]:
    """`<16`, `16-32`, ..., `>=32768`."""
    inner = [f"{low:g}-{high:g}" for low, high in pairwise(edges)]
    return [f"<{edges[0]:g}", *inner, f">={edges[-1]:g}"]


def script_of(text: str) -> str:
    """The script of most letters; no language detector, which would be one more model to keep alike on both sides."""
    if text.isascii():
        return "latin" if any(map(str.isalpha, text)) else NONE
    counts: dict[str, int] = {}
    for letter in text:
        if letter.isalpha():
            at = bisect_right(_SCRIPT_ENDS, ord(letter))
            name = _SCRIPTS[at][1] if at < len(_SCRIPTS) else NONE
            counts[name] = counts.get(name, 0) + 1
    return max(counts, key=lambda name: counts[name]) if counts else NONE


def words_of(text: str) -> list[int]:
    """The hashed words and word pairs of a text: signed feature hashing (Weinberger et al. 2009, ICML)."""
    words = _WORD.findall(text.lower())
    return [zlib.crc32(each.encode()) for each in (*words, *map(" ".join, pairwise(words)))]


@dataclass(frozen=True)
class Codebook:
    """Centroids of the training texts in hashed word space; a text is told by its nearest one and how near that is.

    The hashing is lossy and the centroids are means of many texts in eight bits: no text can be read out of them.
    """

    weights: Vector
    centroids: Vector

    def place(self, text: str) -> tuple[int, float]:
        """The nearest centroid and the cosine to it (0 for a text without words)."""
        vector = self.vector(text)
        near = self.centroids @ vector
        best = int(near.argmax())
        return best, max(0.0, float(near[best]))

    def vector(self, text: str) -> Vector:
        """Unit length, or all zero for a text without words."""
        import numpy as np

        vector = np.zeros(DIMENSIONS, dtype=np.float32)
        for code in words_of(text):
            vector[code % DIMENSIONS] += 1.0 if code & 0x10000 else -1.0
        vector *= self.weights
        length = float(np.sqrt(vector @ vector))
        return vector / length if length else vector

    def to_json(self) -> Json:
        import numpy as np

        scale = float(np.abs(self.centroids).max()) or 1.0
        whole = np.round(self.centroids / scale * 127).astype(np.int8)
        return {
            "weights": [round(float(each), 3) for each in self.weights],
            "scale": scale,
            "centroids": len(whole),
            "int8": base64.b64encode(whole.tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, data: Json) -> Codebook:
        """Raises ValueError when the numbers do not fit each other."""
        import numpy as np

        whole = np.frombuffer(base64.b64decode(data["int8"]), dtype=np.int8).reshape(data["centroids"], DIMENSIONS)
        step = np.float32(float(data["scale"]) / 127)
        return cls(np.array(data["weights"], dtype=np.float32), np.multiply(whole, step, dtype=np.float32))


def learn_codebook(texts: Sequence[str], centroids: int, rounds: int = 12) -> Codebook:
    """Spherical k-means (Dhillon & Modha 2001) over the texts; the same texts give the same codebook."""
    import numpy as np

    plain = Codebook(np.ones(DIMENSIONS, dtype=np.float32), np.zeros((1, DIMENSIONS), dtype=np.float32))
    raw = np.stack([plain.vector(each) for each in texts])
    rare = np.log((1 + len(raw)) / (1 + np.count_nonzero(raw, axis=0)))
    weights = (np.maximum(rare, 0.05) / max(float(rare.max()), 0.05)).astype(np.float32).round(3)
    rows = raw * weights
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    centre = rows[np.random.default_rng(0).choice(len(rows), size=min(centroids, len(rows)), replace=False)]
    for _ in range(rounds):
        nearest = (rows @ centre.T).argmax(axis=1)
        sums = np.zeros_like(centre)
        np.add.at(sums, nearest, rows)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centre = np.where(length > 0, sums / np.maximum(length, 1e-9), centre)
    # what is stored is what is counted with: eight bits from the start
    return Codebook.from_json(Codebook(weights, centre.astype(np.float32)).to_json())


def answer_category(task: Task, parsed: Parsed, text: str) -> str:
    """A label, the keys of an object, the tools called, or the length of a text: the form of an answer, not its words.

    Keys are named only where the schema names them, tools as the request named them.
    """
    if not parsed.valid:
        return INVALID
    if task.kind == "classification":
        return str(parsed.value)
    if task.kind == "extraction":
        known = (task.describe().get("schema") or {}).get("properties") or {}
        found = parsed.value if isinstance(parsed.value, dict) else {}
        return "keys:" + ",".join(sorted(key for key, value in found.items() if key in known and value is not None))
    if task.kind == "tool_calls":
        return "tools:" + ",".join(sorted(_called(parsed.value)))
    return "length:" + bin_names(LENGTHS)[bin_of(len(text), LENGTHS)]


def _called(value: Any) -> list[str]:
    return [str(each["name"])[:64] for each in value["calls"]]
