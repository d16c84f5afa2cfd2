"""Promises of semantic near-duplicates: every pair above the threshold, none below, paraphrases yes, opposites no."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation import semantic
from distillation.semantic import Semantic, embed, neighbours, semantic_pairs
from potstill.errors import RecipeError

with_model = pytest.mark.skipif(find_spec("wordllama") is None, reason="needs the package wordllama")


@given(st.integers(0, 60), st.floats(0.5, 1), st.integers(1, 20), st.integers(0, 9))
def test_the_search_finds_all_pairs_above_the_threshold_whatever_the_blocks(
    rows: int, threshold: float, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(5, 16))
    vectors = (middles[rng.integers(0, 5, rows)] + 0.4 * rng.normal(size=(rows, 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "SEARCH_ROWS", block)
        found = list(neighbours(vectors, threshold))
    assert found == sorted(set(found))
    assert all(a < b for a, b in found)
    sure = {(a, b) for a in range(rows) for b in range(a + 1, rows) if cosines[a, b] >= threshold + 1e-6}
    maybe = {(a, b) for a in range(rows) for b in range(a + 1, rows) if cosines[a, b] >= threshold - 1e-6}
    assert sure <= set(found) <= maybe


@with_model
def test_paraphrases_are_found_and_opposites_and_other_numbers_are_not() -> None:
    texts = [
        "I would like to activate my card.",
        "I would like my card activated.",
        "I would not like my card activated.",
        "What is the exchange rate for 100 euros?",
        "What is the exchange rate for 200 euros?",
        "How do I reset my passcode?",
        "",
        "   ",
    ]
    assert semantic_pairs(texts, Semantic(enabled=True)) == [(0, 1)]
    loose = semantic_pairs(texts, Semantic(enabled=True, same_exact_words=False))
    assert {(0, 1), (1, 2), (3, 4)} <= set(loose)


@with_model
def test_a_text_is_embedded_alike_whatever_stands_beside_it() -> None:
    texts = [f"Where is my order number {at}, it was due on day {at % 7}?" for at in range(40)] + [""]
    together = embed(texts)
    assert together.shape == (41, 256)
    assert together.dtype == np.float32
    alone = np.concatenate([embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together[:-1], axis=1), 1, atol=1e-5)


@with_model
def test_words_give_the_tokens_of_the_whole_text() -> None:
    texts = ["Why haven't I gotten my (new) card?", "Überweisung: 12,50 € — sofort!", "a_b/c  d\n\ne 😀"]
    tokenizer, weights = semantic._model()
    for text, vector in zip(texts, embed(texts), strict=True):
        whole = weights[tokenizer.encode(" ".join(text.split()), add_special_tokens=False).ids].sum(axis=0)
        np.testing.assert_allclose(vector, whole / np.linalg.norm(whole), atol=1e-6)


def test_without_the_package_the_recipe_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "PACKAGE", "no_such_package_here")
    semantic._model.cache_clear()
    with pytest.raises(RecipeError, match="pip install"):
        semantic_pairs(["a text"], Semantic(enabled=True))
    semantic._model.cache_clear()


def test_too_many_rows_are_refused_before_anything_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "MOST_ROWS", 3)
    with pytest.raises(RecipeError, match="at most 3"):
        semantic_pairs(["a"] * 4, Semantic(enabled=True))
