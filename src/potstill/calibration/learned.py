"""A router learned on one's own traffic: how likely the student is right about a text, before it is asked.

Logistic regression over hashed words, word pairs and character trigrams, read from the text within some ten
microseconds. Fitting needs scikit-learn, answering needs numpy alone. Static word embeddings (WordLlama's) in their
place told right from wrong worse at every number of rows (`benchmarks/escalation.py`'s Banking77: area under the ROC
curve 0.54 against 0.56 with 250 rows, 0.58 against 0.64 with 1,200), so that they are not offered.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUCKETS = 1 << 15
MOST_CHARACTERS = 600  # of the end of a text: what is asked mostly stands there, and the time stays bounded
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class LearnedRouter:
    """`probability` of a right answer by the student; weights one a bucket."""

    weights: NDArray[np.float32]
    bias: float

    def probability(self, text: str) -> float:
        places = buckets(text)
        margin = float(self.weights[places].sum()) / math.sqrt(len(places)) if places else 0.0
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, margin + self.bias))))

    def write(self, path: Path) -> None:
        import numpy as np

        with path.open("wb") as stream:
            np.savez(stream, weights=self.weights, bias=np.array(self.bias))

    @classmethod
    def read(cls, path: Path) -> LearnedRouter:
        import numpy as np

        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["weights"], float(stored["bias"]))


def fit(texts: Sequence[str], losses: Sequence[float], strength: float = 10.0) -> LearnedRouter:
    """Fitted to rows of which some were right and some wrong; raises PotstillError for rows of one kind."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    right = np.array([loss < 0.5 for loss in losses])
    if right.all() or not right.any():
        raise PotstillError(f"a router cannot be learned from {len(right)} rows of which {int(right.sum())} are right")
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit(_matrix(texts), right)
    return LearnedRouter(model.coef_[0].astype(np.float32), float(model.intercept_[0]))


def _matrix(texts: Sequence[str]) -> Any:
    """The buckets of each text, a sparse row a text, of length 1."""
    import numpy as np
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
    return list({zlib.crc32(each.encode("utf-8", "replace")) % BUCKETS for each in (*words, *pairs, *grams)})
