"""Rows that stand in an evaluation file: a model trained on the questions of its exam passes without having learnt.

Three ways to stand there, the cheapest first: the whole text in normal form is the same; `ngram` words in a row are the
same (13 by default, as for GPT-3: Brown et al. 2020, appendix C); or the texts are near-duplicates (Jaccard over
character shingles as in `duplicates`, which also finds short texts with a changed word). Evaluation files may be text
lines, JSON lines, CSV or Parquet, compressed or not, and our own datasets and gold files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from potstill.recipe import PathText, Section

from .evaluation_texts import evaluation_texts
from .fingerprints import band_keys, jaccard, signatures

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Hashes = npt.NDArray[np.uint64]

LEAST_WORDS = 4  # "yes please" stands in every evaluation file and gives nothing away
STANDING_TEXTS = (
    10  # words in a row that more evaluation texts share (or one in a hundred) are standing text of that file
)
_BASE = 0x9E3779B97F4A7C15  # odd: multiplication modulo 2**64 loses nothing


class EvaluationFile(Section):
    """A file whose texts must not be learnt. `keys` are the dotted fields that hold them; by default what is usual
    (messages, input, question, prompt, text, query), and the ids of a gold file that has nothing but answers."""

    path: PathText
    keys: tuple[str, ...] = ()


class Decontaminate(Section):
    """Against which files, and what counts as standing there; `near_duplicates: null` compares words alone."""

    files: tuple[PathText | EvaluationFile, ...] = ()
    ngram: Annotated[int, Field(ge=8, le=50)] = 13
    near_duplicates: Annotated[float, Field(gt=0.3, le=1)] | None = 0.9

    def evaluation_files(self) -> list[EvaluationFile]:
        """The files, each with its keys."""
        return [each if isinstance(each, EvaluationFile) else EvaluationFile(path=each) for each in self.files]


@dataclass(frozen=True)
class Contamination:
    """An index over evaluation texts; `hits` says which text of which file a row repeats."""

    settings: Decontaminate
    places: list[str]  # "file:line" of each text
    ids: dict[str, str]  # ids in gold files, with their place
    whole: dict[str, int]  # texts in normal form
    vocabulary: pa.Array  # every word of them
    ngrams: Hashes  # hashes of their n-grams, sorted
    owners: npt.NDArray[np.int64]  # the text of each
    near: _Near | None

    @classmethod
    def build(cls, settings: Decontaminate, clean: Callable[[str], str] = str) -> Contamination:
        """Read the files; raises RecipeError for one that is missing, damaged or has no text.

        `clean` does to a text what was done to those that will be looked up (redaction, say).
        """
        import numpy as np
        import pyarrow.compute as pc

        found = [text for file in settings.evaluation_files() for text in evaluation_texts(file.path, file.keys)]
        ids = {each.text: each.place for each in reversed(found) if each.is_id}
        texts = [replace(each, text=clean(each.text)) for each in found if not each.is_id]
        words = words_of([each.text for each in texts])
        enough = pc.indices_nonzero(pc.greater_equal(pc.list_value_length(words), LEAST_WORDS))
        places, words = [texts[at].place for at in enough.to_pylist()], words.take(enough)
        vocabulary = pc.unique(pc.list_flatten(words))
        hashes, owners = _ngrams(words, vocabulary, settings.ngram)
        pairs = np.unique(np.stack([hashes, owners.astype(np.uint64)]), axis=1)  # each n-gram once a text
        each, first, count = np.unique(pairs[0], return_index=True, return_counts=True)
        telling = count <= max(STANDING_TEXTS, len(places) // 100)
        kept = [texts[at].text for at in enough.to_pylist()]
        return cls(
            settings=settings,
            places=places,
            ids=ids,
            whole={text: at for at, text in reversed(list(enumerate(joined_words(words))))},
            vocabulary=vocabulary,
            ngrams=each[telling],
            owners=pairs[1][first[telling]].astype(np.int64),
            near=_Near.build(kept, settings.near_duplicates) if settings.near_duplicates and kept else None,
        )

    def hits(self, texts: Sequence[str], ids: Sequence[str] | None = None) -> list[str | None]:
        """For each text "file:line" of the evaluation text that it repeats (or of its id in a gold file), or None.

        Give what the user wrote, without standing instructions. A batch of some thousand texts at a time is quickest.
        """
        import numpy as np
        import pyarrow as pa

        found: list[str | None] = [self.ids.get(each) for each in ids] if ids is not None else [None] * len(texts)
        if not self.places or not texts:
            return found
        words = words_of(texts)
        hashes, rows = _ngrams(words, self.vocabulary, self.settings.ngram)
        if len(self.ngrams) and len(hashes):
            at = np.minimum(np.searchsorted(self.ngrams, hashes), len(self.ngrams) - 1)
            for place in np.flatnonzero(self.ngrams[at] == hashes)[::-1].tolist():  # so that a row's first one stays
                found[int(rows[place])] = found[int(rows[place])] or self.places[int(self.owners[at[place]])]
        known = np.flatnonzero(_known(words, self.vocabulary))  # a row with another word is none of the texts
        for row, text in zip(known.tolist(), joined_words(words.take(pa.array(known))), strict=True):
            same = self.whole.get(text)
            found[row] = self.places[same] if same is not None else found[row]
        if self.near is not None:
            left = [row for row, place in enumerate(found) if place is None]
            for row, near in zip(left, self.near.find([texts[row] for row in left]), strict=True):
                found[row] = None if near is None else self.places[near]
        return found


@dataclass(frozen=True)
class _Near:
    """Near-duplicates among the evaluation texts, every candidate checked by exact Jaccard."""

    threshold: float
    texts: Sequence[str]
    buckets: dict[tuple[int, int], list[int]]  # (band, key) -> texts

    @classmethod
    def build(cls, texts: Sequence[str], threshold: float) -> _Near:
        buckets: dict[tuple[int, int], list[int]] = {}
        for band, keys in enumerate(band_keys(signatures(texts), threshold).tolist()):
            for at, key in enumerate(keys):
                buckets.setdefault((band, key), []).append(at)
        return cls(threshold, texts, buckets)

    def find(self, texts: Sequence[str]) -> list[int | None]:
        """For each text the first evaluation text that is at least as similar as the threshold."""
        candidates: list[set[int]] = [set() for _ in texts]
        for band, keys in enumerate(band_keys(signatures(texts), self.threshold).tolist()):
            for row, key in enumerate(keys):
                candidates[row].update(self.buckets.get((band, key), ()))
        return [
            next((other for other in sorted(others) if jaccard(text, self.texts[other]) >= self.threshold), None)
            for text, others in zip(texts, candidates, strict=True)
        ]


def words_of(texts: Sequence[str]) -> pa.Array:
    """A list of words for each text: in lower case, of letters and digits alone."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pa.array(texts, pa.large_string())
    foreign = pc.invert(pc.string_is_ascii(column))
    if foreign.true_count:
        folded = pc.replace_substring_regex(pc.utf8_lower(column.filter(foreign)), r"[^\pL\pN]+", " ")
        column = pc.replace_with_mask(column, foreign, folded)
    _, offsets, data = column.buffers()
    if data is not None:  # a table of bytes is twenty times as fast as a regular expression
        mapped = pa.py_buffer(_table()[np.frombuffer(data, np.uint8)])
        column = pa.LargeStringArray.from_buffers(len(column), offsets, mapped)
    return pc.ascii_split_whitespace(pc.ascii_trim_whitespace(column))


def joined_words(words: pa.Array) -> list[str]:
    """The texts in normal form."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return list(pc.binary_join(words, pa.scalar(" ", pa.large_string())).to_pylist())


def _table() -> npt.NDArray[np.uint8]:
    """Each byte's normal form: ASCII letters in lower case, digits and bytes beyond ASCII as they are, else a space."""
    import numpy as np

    table = np.full(256, ord(" "), np.uint8)
    table[128:] = np.arange(128, 256)
    for each in b"abcdefghijklmnopqrstuvwxyz0123456789":
        table[each] = each
        table[ord(chr(each).upper())] = each
    return table


def _ngrams(words: pa.Array, vocabulary: pa.Array, length: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes of all runs of `length` words that are in the vocabulary, and the row of each, in order."""
    import numpy as np
    import pyarrow.compute as pc

    flat = pc.list_flatten(words)
    if len(flat) < length:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    numbers = pc.fill_null(pc.index_in(flat, vocabulary), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    row_of = np.repeat(np.arange(len(words)), pc.list_value_length(words).to_numpy())
    known = np.concatenate([[0], np.cumsum(numbers >= 0)])
    within = (known[length:] - known[:-length] == length) & (row_of[: len(row_of) - length + 1] == row_of[length - 1 :])
    mixed = _mixed(np.arange(-1, len(vocabulary)))[numbers + 1]
    hashes = np.zeros(len(within), np.uint64)
    for at in range(length):
        hashes *= np.uint64(_BASE)
        hashes += mixed[at : at + len(within)]
    return hashes[within], row_of[: len(within)][within]


def _known(words: pa.Array, vocabulary: pa.Array) -> npt.NDArray[np.bool_]:
    """Where every word of a row is in the vocabulary."""
    import numpy as np
    import pyarrow.compute as pc

    unknown = pc.is_null(pc.index_in(pc.list_flatten(words), vocabulary)).to_numpy(zero_copy_only=False)
    row_of = np.repeat(np.arange(len(words)), pc.list_value_length(words).to_numpy())
    known: npt.NDArray[np.bool_] = np.bincount(row_of[unknown], minlength=len(words)) == 0
    return known


def _mixed(numbers: npt.NDArray[np.int64]) -> Hashes:
    """Word numbers spread over 64 bits (the finaliser of SplitMix64)."""
    import numpy as np

    mixed = (numbers.astype(np.uint64) + np.uint64(2)) * np.uint64(_BASE)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
