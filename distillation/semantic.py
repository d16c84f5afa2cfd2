"""Pairs of texts that mean the same in other words, by sentence embeddings. Optional and off by default.

The model is WordLlama (MIT): the token embeddings of a large model, projected to 256 dimensions and averaged. Its
weights and tokenizer lie inside the package `wordllama`, so nothing is downloaded; only these two files are read, the
package itself is not imported (importing it reconfigures logging). A mean of word vectors knows which words stand in a
text, not their order nor what "not" refers to.

Which threshold: on the 10,003 training questions of Banking77 (77 intents, many of them close), all pairs by cosine,
with the share whose two questions have the same intent:

    0.99 - 1.00      117 pairs   99 %    "What is the currency exchange fee?" / "What is your currency exchange fee?"
    0.97 - 0.99      453        >99 %    "I would like to activate my card." / "I would like my card activated."
    0.95 - 0.97      736         98 %    "Why have I not gotten my new card?" / "Why haven't I gotten my new card?"
    0.93 - 0.95    1,250         98 %    "How can I cancel a transfer I made" / "Can I cancel a transfer I made"
    0.90 - 0.93    3,527         96 %    "Why is my ATM withdrawal still pending?" / "How long will my ... be pending?"
    0.87 - 0.90    5,860         92 %    "i cant seem to activate card" / "I want to activate the card."
    0.80 - 0.84   16,921         83 %

Down to 0.93 a pair is a paraphrase, and where intents differ it is mostly the label that is wrong; below 0.90 pairs
share a subject and ask different things. So 0.93 by default, and never below 0.9 without looking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from potstill.errors import RecipeError
from potstill.recipe import Section

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

PACKAGE = "wordllama"
WEIGHTS = Path("weights") / "l2_supercat_256.safetensors"
TOKENIZER = Path("tokenizers") / "l2_supercat_tokenizer_config.json"
EMBED_ROWS = 4096  # texts whose words are looked up at once
SEARCH_ROWS = 2048  # rows a block of the search: 16 MB of cosines
MOST_ROWS = 250_000  # time goes with the square of the rows: 200,000 take some minutes on two cores, a million hours
_NEGATION = r"\w+n['’]t|not?|never|none|nothing|without|cannot|cant|dont|wont|isnt|didnt|doesnt|havent|couldnt"
_EXACT = re.compile(rf"\d+|\b(?:{_NEGATION})\b", re.IGNORECASE)


class Semantic(Section):
    """Whether paraphrases count as near-duplicates, and from which cosine on.

    `same_exact_words` asks beyond the cosine that both texts hold the same numbers and as many negations: to an
    averaged embedding "flight 417 on day 3" and "flight 418 on day 5", or "do" and "do not", are all but the same.
    """

    enabled: bool = False
    threshold: Annotated[float, Field(ge=0.5, le=1)] = 0.93
    same_exact_words: bool = True


def semantic_pairs(texts: Sequence[str], settings: Semantic) -> list[tuple[int, int]]:
    """Pairs (a, b) of row numbers, a < b, ascending, whose cosine is at least the threshold; each one computed exactly.

    Not closed: a ~ b and b ~ c do not make a ~ c here. Raises RecipeError without the package or for too many rows.
    """
    if len(texts) > MOST_ROWS:
        most = f"at most {MOST_ROWS:,} are compared pair by pair; sample first"
        raise RecipeError([f"distill.semantic: found {len(texts):,} rows, {most}"])
    pairs = neighbours(embed(texts), settings.threshold)
    if not settings.same_exact_words:
        return list(pairs)
    exact: dict[int, tuple[list[str], int]] = {}
    return [pair for pair in pairs if _exact(texts, pair[0], exact) == _exact(texts, pair[1], exact)]


def embed(texts: Sequence[str]) -> Vectors:
    """Unit vectors, shape (rows, 256), float32; zeros for a text without a word.

    A text's vector is the mean of its tokens' vectors. Tokens do not cross words, so that each distinct word of a block
    is cut into tokens once.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    tokenizer, weights = _model()
    vectors = np.zeros((len(texts), weights.shape[1]), np.float32)
    for start in range(0, len(texts), EMBED_ROWS):
        block = [text.split() for text in texts[start : start + EMBED_ROWS]]
        number: dict[str, int] = {}
        columns = np.array([number.setdefault(word, len(number)) for words in block for word in words], np.int32)
        ends = np.concatenate([[0], np.cumsum([len(words) for words in block])])
        if not number:
            continue
        counts = csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape=(len(block), len(number)))
        vectors[start : start + len(block)] = counts @ _word_vectors(list(number), tokenizer, weights)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    vectors /= lengths
    return vectors


def neighbours(vectors: Vectors, threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs (a, b), a < b, in ascending order, of unit vectors whose product is at least the threshold.

    All pairs, block by block: exact, in memory that does not grow with the rows. Zero vectors have no neighbours.
    """
    import numpy as np

    for start in range(0, len(vectors), SEARCH_ROWS):
        block = vectors[start : start + SEARCH_ROWS]
        found: list[Any] = []
        for other in range(start, len(vectors), SEARCH_ROWS):
            cosines = block @ vectors[other : other + SEARCH_ROWS].T
            close = np.flatnonzero(cosines.ravel() >= threshold)  # flat: several times as fast as on two axes
            a, b = close // cosines.shape[1] + start, close % cosines.shape[1] + other
            found.append(np.stack([a, b], axis=1)[a < b])
        pairs = np.concatenate(found)
        yield from map(tuple, pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].tolist())


def _exact(texts: Sequence[str], row: int, known: dict[int, tuple[list[str], int]]) -> tuple[list[str], int]:
    """The numbers in a text and how many negations it holds."""
    if row not in known:
        words = _EXACT.findall(texts[row])
        known[row] = sorted(word for word in words if word.isdigit()), sum(not word.isdigit() for word in words)
    return known[row]


def _word_vectors(words: list[str], tokenizer: Any, weights: Vectors) -> Vectors:
    """Each word's token vectors, summed: the mean over a text is of tokens, and its length is made one anyway."""
    import numpy as np

    tokens = [each.ids for each in tokenizer.encode_batch_fast(words, add_special_tokens=False)]
    lengths = np.array([len(each) for each in tokens])
    flat = np.fromiter((token for each in tokens for token in each), np.int64, int(lengths.sum()))
    return np.add.reduceat(weights[flat], np.cumsum(lengths) - lengths, axis=0)


@cache
def _model() -> tuple[Any, Vectors]:
    """Tokenizer and token vectors (vocabulary, 256) out of the installed package."""
    from importlib.util import find_spec

    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError([f"distill.semantic: needs the package {PACKAGE}: pip install 'potstill[semantic]'"])
    import numpy as np
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(spec.submodule_search_locations[0])
    weights = load_file(folder / WEIGHTS)["embedding.weight"].astype(np.float32)
    return Tokenizer.from_file(str(folder / TOKENIZER)), weights
