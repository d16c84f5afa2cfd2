"""The training profile: what the rows looked like that a student learnt from, as counts. It travels with the artifact.

Fixed scales (length, turns, script) are counted over all open rows. What is learnt from the rows itself (centroids, the
list of prompts and answers that occur) is learnt on one half of them and counted on the other, so that the counts are
those of rows that had no say in the categories.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.dataset import OpenSplit, read_examples
from potstill.errors import ManifestMismatch
from potstill.manifest import write_atomically
from potstill.records import Example, Json
from potstill.tasks import Task
from potstill.watching.features import (
    CONFIDENCE,
    INVALID,
    LENGTHS,
    LIKENESS,
    OTHER,
    SCRIPTS,
    TURNS,
    Codebook,
    Seen,
    answer_category,
    bin_names,
    bin_of,
    learn_codebook,
    script_of,
    seen_of,
)

PROFILE = "profile.json"
ROWS_A_CENTROID = 100  # fewer, and a centroid is nearer to the rows that it was learnt from than to any other
MOST_CENTROIDS = 32
MOST_ROWS = 50_000  # enough for bounds of a tenth of a point; more rows would only take time
MOST_CATEGORIES = 200


@dataclass(frozen=True, slots=True)
class Reference:
    """One feature's categories with the counts to compare with; `ordered`: bins of a scale."""

    categories: tuple[str, ...]
    counts: tuple[int, ...]
    ordered: bool

    def place(self, category: str) -> int:
        """Where a category is counted; unknown ones under `(other)`, which is the last of an open list."""
        try:
            return self.categories.index(category)
        except ValueError:
            return len(self.categories) - 1

    def to_json(self) -> Json:
        return {"categories": list(self.categories), "counts": list(self.counts), "ordered": self.ordered}

    @classmethod
    def from_json(cls, data: Json) -> Reference:
        found = cls(tuple(data["categories"]), tuple(int(each) for each in data["counts"]), bool(data["ordered"]))
        if len(found.categories) != len(found.counts) or not found.counts:
            raise ValueError(f"{len(found.categories)} categories with {len(found.counts)} counts")
        return found


@dataclass(frozen=True, slots=True)
class Profile:
    """References by feature, and the codebook that the features `topic` and `likeness` need (None: too few rows)."""

    rows: int
    references: Mapping[str, Reference]
    codebook: Codebook | None

    def write(self, folder: Path) -> None:
        data: Json = {"rows": self.rows, "codebook": self.codebook.to_json() if self.codebook else None}
        data["references"] = {name: each.to_json() for name, each in self.references.items()}
        write_atomically(folder / PROFILE, (json.dumps(data, ensure_ascii=False) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Profile | None:
        """None where the folder has none (an older export); raises ManifestMismatch for a damaged one."""
        path = folder / PROFILE
        if not path.is_file():
            return None
        try:
            data: Json = json.loads(path.read_text(encoding="utf-8"))
            book = Codebook.from_json(data["codebook"]) if data["codebook"] else None
            references = {name: Reference.from_json(each) for name, each in data["references"].items()}
            return cls(int(data["rows"]), references, book)
        except (ValueError, KeyError, TypeError) as fault:
            raise ManifestMismatch(f"{path}: not a training profile ({fault}); export the adapter again") from fault

    def places(self, seen: Seen) -> dict[str, int]:
        """The category of each input feature."""
        found = {
            "length": bin_of(seen.characters, LENGTHS),
            "turns": bin_of(seen.turns, TURNS),
            "script": self.references["script"].place(script_of(seen.text)),
            "prompt": self.references["prompt"].place(seen.prompt),
        }
        if self.codebook is not None:
            topic, cosine = self.codebook.place(seen.text)
            found |= {"topic": topic, "likeness": bin_of(cosine, LIKENESS)}
        return found

    def facts(self) -> Json:
        """What the manifest says of it."""
        answers = self.references["answer"]
        return {
            "rows": self.rows,
            "features": sorted(self.references),
            "centroids": len(self.codebook.centroids) if self.codebook else 0,
            "answers": sum(count > 0 for count in answers.counts),
        }


def make_profile(rows: Sequence[Example], task: Task) -> Profile:
    """The profile of training rows, each as often as the log had it; the same rows give the same profile."""
    rows = rows[:: max(1, -(-len(rows) // MOST_ROWS))]
    seen = [seen_of(each.messages) for each in rows]
    said = [answer_category(task, task.parse(each.answer, each.tools), each.answer) for each in rows]
    weights = [max(1, each.count) for each in rows]
    learnt, counted = _halves(rows)
    references = {
        "length": _scale(LENGTHS, [bin_of(each.characters, LENGTHS) for each in seen], weights),
        "turns": _scale(TURNS, [bin_of(each.turns, TURNS) for each in seen], weights),
        "script": _listed(SCRIPTS, [script_of(each.text) for each in seen], weights),
        "prompt": _open(
            [seen[at].prompt for at in learnt], [seen[at].prompt for at in counted], [weights[at] for at in counted]
        ),
    }
    if task.kind == "classification":
        references["answer"] = _listed((*task.describe()["labels"], INVALID), said, weights)
    else:
        references["answer"] = _open(
            [said[at] for at in learnt], [said[at] for at in counted], [weights[at] for at in counted]
        )
    book = None
    centroids = min(MOST_CENTROIDS, len(learnt) // ROWS_A_CENTROID)
    if centroids >= 2:
        book = learn_codebook([seen[at].text for at in learnt], centroids)
        places = [book.place(seen[at].text) for at in counted]
        of = [weights[at] for at in counted]
        references["topic"] = _listed([str(at) for at in range(len(book.centroids))], [str(at) for at, _ in places], of)
        references["likeness"] = _scale(LIKENESS, [bin_of(cosine, LIKENESS) for _, cosine in places], of)
    return Profile(sum(weights), references, book)


def _halves(rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    """By the hash of the id: no order of the rows can make the halves unlike. A very small dataset is in both."""
    first = [at for at, each in enumerate(rows) if zlib.crc32(each.id.encode()) & 1]
    chosen = set(first)
    second = [at for at in range(len(rows)) if at not in chosen]
    return (first, second) if first and second else (list(range(len(rows))), list(range(len(rows))))


def write_profile(dataset: Path, task: Task, out: Path) -> Json:
    """Write the profile of a dataset's open rows beside the artifact; returns what its manifest says of it."""
    splits: tuple[OpenSplit, ...] = ("train", "validation")
    there = [each for each in splits if (dataset / f"{each}.parquet").is_file()]
    rows = [row for each in there for row in read_examples(dataset, each)]
    made = make_profile(rows, task)
    made.write(out)
    return made.facts()


def confidence_reference(values: Sequence[float]) -> Reference:
    """A reference of probabilities of whole answers."""
    return _scale(CONFIDENCE, [bin_of(each, CONFIDENCE) for each in values], [1] * len(values))


def _scale(edges: Sequence[float], places: Sequence[int], weights: Sequence[int]) -> Reference:
    counts = [0] * (len(edges) + 1)
    for place, weight in zip(places, weights, strict=True):
        counts[place] += weight
    return Reference(tuple(bin_names(edges)), tuple(counts), True)


def _listed(categories: Sequence[str], found: Sequence[str], weights: Sequence[int]) -> Reference:
    """Over a list that is known beforehand."""
    counts: Counter[str] = Counter()
    for each, weight in zip(found, weights, strict=True):
        counts[each] += weight
    return Reference(tuple(categories), tuple(counts[each] for each in categories), False)


def _open(learnt: Sequence[str], counted: Sequence[str], weights: Sequence[int]) -> Reference:
    """Over what occurs among the learnt ones, most frequent first, and `(other)`."""
    known = [name for name, _ in Counter(learnt).most_common(MOST_CATEGORIES)]
    kept = set(known)
    return _listed((*known, OTHER), [each if each in kept else OTHER for each in counted], weights)
