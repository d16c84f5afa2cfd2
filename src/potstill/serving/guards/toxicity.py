"""How abusive a text is: the linear model that comes in alt-profanity-check, read once and summed by ourselves.

The package's model (TF-IDF over words, five linear support vector machines with sigmoid calibration, taught by 200,000
comments that people judged) takes milliseconds a text through scikit-learn; the same sums over the words that a text
has take microseconds. It knows words, not what they are used for: measured in docs/serving-guards.md.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from potstill.errors import RecipeError
from potstill.serving.guards.normalise import Reading

_MODULE = "profanity_check"
STRONG = 1.5  # weight of a word that speaks clearly for abuse; the model's offsets need about 2.3 in all
_WORD = re.compile(r"\w\w+")


class Toxicity:
    """`score(text)` is the probability that a person would call it offensive."""

    def __init__(self, vectorizer: Any, model: Any) -> None:
        import numpy as np

        machines = model.calibrated_classifiers_
        weights = np.vstack([each.estimator.coef_[0] for each in machines]).T
        self._idf = np.asarray(vectorizer.idf_)
        self._weights = weights * self._idf[:, None]
        self._bias = np.array([each.estimator.intercept_[0] for each in machines])
        self._slope = np.array([each.calibrators[0].a_ for each in machines])
        self._offset = np.array([each.calibrators[0].b_ for each in machines])
        self._place: dict[str, int] = dict(vectorizer.vocabulary_)
        strong = weights.mean(axis=1) >= STRONG
        self._strong = frozenset(word for word, place in self._place.items() if strong[place])

    def score(self, text: str) -> float:
        return self.score_reading(Reading(text))

    def score_reading(self, reading: Reading) -> float:
        """0 where no single word speaks clearly for abuse: most texts end there."""
        if self._strong.isdisjoint(reading.tokens):
            return 0.0
        import numpy as np

        words = _WORD.findall(reading.lower)
        place = self._place
        counts = Counter([place[each] for each in words if each in place])
        at = np.fromiter(counts.keys(), int, len(counts))
        times = np.fromiter(counts.values(), float, len(counts))
        length = np.sqrt(np.square(times * self._idf[at]).sum())
        margin = times @ self._weights[at] / length + self._bias
        return float(np.mean(1.0 / (1.0 + np.exp(self._slope * margin + self._offset))))


def refuse_missing(key: str) -> None:
    """Raises RecipeError where the package is not installed."""
    if find_spec(_MODULE) is None:
        raise RecipeError([f"{key}: needs alt-profanity-check, which is not installed; pip install 'potstill[guards]'"])


@lru_cache(maxsize=1)
def load_toxicity() -> Toxicity:
    """The model of the installed package; takes two seconds the first time, so not in an event loop."""
    package = import_module(f"{_MODULE}.profanity_check")
    return Toxicity(package.vectorizer, package.model)
