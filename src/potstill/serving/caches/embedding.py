"""A text as a point: texts that say the same lie close. Static word vectors, some tens of microseconds a text.

The model is WordLlama (MIT): the token embeddings of a large model projected to 256 dimensions, averaged over the text.
Weights and tokenizer lie in the package `wordllama`, of which only these two files are read; no torch. A mean of word
vectors knows neither order nor what "not" refers to, so closeness alone decides nothing here: `verified.py` learns how
far it can be relied on.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

PACKAGE = "wordllama"
WEIGHTS = Path("weights") / "l2_supercat_256.safetensors"
TOKENIZER = Path("tokenizers") / "l2_supercat_tokenizer_config.json"
DIMENSIONS = 256


def folder() -> Path:
    """Where the package lies; raises RecipeError where it is not installed."""
    from importlib.util import find_spec

    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError([f"serve.cache.semantic: needs the package {PACKAGE}: pip install 'potstill[semantic]'"])
    return Path(spec.submodule_search_locations[0])


class Embedder:
    """The model in memory (32 MB); loading takes some tenths of a second."""

    def __init__(self) -> None:
        import numpy as np
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        place = folder()
        self._weights = load_file(place / WEIGHTS)["embedding.weight"].astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(place / TOKENIZER))

    def vector(self, text: str) -> Vector | None:
        """A unit vector of DIMENSIONS; None for a text without a word."""
        import numpy as np

        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            return None
        found: Vector = self._weights[ids].sum(axis=0)
        length = float(np.sqrt(found @ found))
        return found / np.float32(length) if length > 0 else None


@cache
def embedder() -> Embedder:
    """The one of this process."""
    return Embedder()
