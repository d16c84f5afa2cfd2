"""A router learned on one's own traffic: how likely the student is right about a text, before it is asked.

Logistic regression over what can be read from the text within some ten microseconds: hashed words and character
n-grams (`words`), or the mean of static word embeddings (`embedding`: WordLlama's 256 dimensions, MIT, whose weights
lie inside the package `wordllama`; nothing is downloaded, and only its two files are read). Fitting needs scikit-learn,
answering needs numpy alone, for embeddings also `tokenizers` and `safetensors`.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from potstill.errors import PotstillError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Features = Literal["words", "embedding"]
BUCKETS = 1 << 15
MOST_CHARACTERS = 600  # of the end of a text: what is asked mostly stands there, and the time stays bounded
_WORD = re.compile(r"\w+")
_WEIGHTS = Path("weights") / "l2_supercat_256.safetensors"
_TOKENIZER = Path("tokenizers") / "l2_supercat_tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class LearnedRouter:
    """`probability` of a right answer by the student; weights one a bucket or dimension."""

    features: Features
    weights: NDArray[np.float32]
    bias: float

    def probability(self, text: str) -> float:
        if self.features == "words":
            places = buckets(text)
            margin = float(self.weights[places].sum()) / math.sqrt(len(places)) if places else 0.0
        else:
            margin = float(self.weights @ _embedder()(text))
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, margin + self.bias))))

    def write(self, path: Path) -> None:
        import numpy as np

        with path.open("wb") as stream:
            np.savez(stream, features=np.array(self.features), weights=self.weights, bias=np.array(self.bias))

    @classmethod
    def read(cls, path: Path) -> LearnedRouter:
        """Raises PotstillError where the features need a package that is missing."""
        import numpy as np

        with np.load(path, allow_pickle=False) as stored:
            kind: Features = "embedding" if str(stored["features"]) == "embedding" else "words"
            found = cls(kind, stored["weights"], float(stored["bias"]))
        if kind == "embedding":
            _embedder()
        return found


def fit(texts: Sequence[str], losses: Sequence[float], features: Features, strength: float = 1.0) -> LearnedRouter:
    """Fitted to rows of which some were right and some wrong; raises PotstillError for rows of one kind."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    right = np.array([loss < 0.5 for loss in losses])
    if right.all() or not right.any():
        raise PotstillError(f"a router cannot be learned from {len(right)} rows of which {int(right.sum())} are right")
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit(matrix(texts, features), right)
    return LearnedRouter(features, model.coef_[0].astype(np.float32), float(model.intercept_[0]))


def matrix(texts: Sequence[str], features: Features) -> Any:
    """What is read from each text, a row a text: sparse for words."""
    import numpy as np

    if features == "embedding":
        embed = _embedder()
        return np.stack([embed(text) for text in texts])
    from scipy.sparse import csr_matrix

    rows = [buckets(text) for text in texts]
    ends = np.cumsum([0, *map(len, rows)])
    values = np.concatenate([np.full(len(each), 1 / math.sqrt(len(each))) if each else np.zeros(0) for each in rows])
    return csr_matrix((values, [at for each in rows for at in each], ends), shape=(len(texts), BUCKETS))


def buckets(text: str) -> list[int]:
    """The places of a text's words, word pairs and character trigrams, each once."""
    words = _WORD.findall(text[-MOST_CHARACTERS:].casefold())
    pairs = [f"{one} {two}" for one, two in pairwise(words)]
    inner = f" {' '.join(words)} "
    grams = {inner[at : at + 3] for at in range(len(inner) - 2)}
    return list({zlib.crc32(each.encode()) % BUCKETS for each in (*words, *pairs, *grams)})


@cache
def _embedder() -> Callable[[str], NDArray[np.float32]]:
    """A text as a unit vector of 256 numbers, the mean of its tokens' vectors; zeros for a text without a word."""
    found = find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        raise PotstillError("a learned router on embeddings needs wordllama: pip install 'potstill[semantic]'")
    import numpy as np
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(found.submodule_search_locations[0])
    [vectors] = load_file(folder / _WEIGHTS).values()
    tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def embed(text: str) -> NDArray[np.float32]:
        ids = tokenizer.encode(text[-MOST_CHARACTERS:], add_special_tokens=False).ids
        total = vectors[ids].sum(axis=0, dtype=np.float32) if ids else np.zeros(vectors.shape[1], np.float32)
        length = float(np.linalg.norm(total))
        return np.asarray(total / length if length else total, np.float32)

    return embed
