"""What the judges' replies amount to: scores by row, each judge's own record, agreement, and the corrected rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from potstill.intervals import Resampling
from potstill.records import Json

from ..metrics.figures import mean
from .ask import Judge
from .correct import MIN_LABELS, Judged, corrected
from .labels import Labels, label_of
from .pairs import WIN, Opinion, Pair, opinion_of

# Of the pairs that should have been judged; more that are missing for another reason than money are no accident.
MAX_FAILED = 0.05


@dataclass(frozen=True)
class Outcome:
    """`scores`: by candidate and row id, for rows that were judged. `details` goes into the report as it is.

    `refusals` and `grounds` are sentences for the gate, by candidate; `corrected` figures stand for the judged ones.
    """

    baseline: str
    scores: Mapping[str, Mapping[str, float]]
    corrected: Mapping[str, Json | None]
    details: Json
    refusals: Mapping[str, tuple[str, ...]]
    grounds: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Record:
    """One judge's opinions: of the pairs (by place) and of the controls."""

    judge: Judge
    opinions: Mapping[int, Opinion]
    controls: Sequence[tuple[Pair, Opinion]]
    used: bool
    entry: Json


def record_of(
    judge: Judge, pairs: Sequence[Pair], controls: Sequence[Pair], criteria: str | None, how: Resampling
) -> Record:
    """The judge's record; it is used when its controls show that it can tell a right answer from a stranger's."""
    read = ((at, opinion_of(judge, each, criteria)) for at, each in enumerate(pairs) if each.known is None)
    opinions = {at: opinion for at, opinion in read if opinion is not None}
    checked = [(each, opinion) for each in controls if (opinion := opinion_of(judge, each, criteria)) is not None]
    told = mean([each.score == WIN for _, each in checked], [pair.cluster for pair, _ in checked], how)
    used = not controls or (told is not None and told["low"] > 0.5)
    seen = [*opinions.values(), *(each for _, each in checked)]
    clusters = [pairs[at].cluster for at in opinions]
    chosen = [
        (float(choice == "first"), pairs[at].cluster)
        for at, each in opinions.items()
        for choice in (each.forward, each.backward)
        if choice in ("first", "second")
    ]
    entry = {
        "model": judge.model.model, "asked": len(judge.replies), "failed": len(judge.failed),
        "not_asked": len(judge.unasked),
        "unreadable": sum((each.forward is None) + (each.backward is None) for each in seen),
        "consistent": mean([each.consistent for each in opinions.values()], clusters, how),
        "first_shown": mean([each for each, _ in chosen], [each for _, each in chosen], how),
        "controls": told, "used": used, "usd": judge.usd,
        "failures": sorted(set(judge.failed.values()))[:3],
    }  # fmt: skip
    return Record(judge, opinions, checked, used, entry)


def scores_of(pairs: Sequence[Pair], records: Sequence[Record]) -> list[float | None]:
    """Each pair's score: known, or the mean over the judges that are used and answered; None where none did."""
    found: list[float | None] = []
    for at, pair in enumerate(pairs):
        said = [each.opinions[at].score for each in records if each.used and at in each.opinions]
        found.append(pair.known if pair.known is not None else sum(said) / len(said) if said else None)
    return found


def candidate_figures(
    pairs: Sequence[Pair], scores: Sequence[float | None], labels: Labels, how: Resampling
) -> tuple[Json, Json | None]:
    """One candidate's row of the report, and its corrected preference."""
    judged = [(pair, score) for pair, score in zip(pairs, scores, strict=True) if score is not None]
    clusters = [pair.cluster for pair, _ in judged]
    values = [score for _, score in judged]
    people = [label_of(pair, labels) if pair.known is None else None for pair, _ in judged]
    mended = None
    if labels:
        terms = [
            Judged(pair.cluster, score, person, pair.known is not None)
            for (pair, score), person in zip(judged, people, strict=True)
        ]
        mended = corrected(terms, how)
    entry = {
        "rows": len(judged),
        "asked_about": sum(pair.known is None for pair, _ in judged),
        "equal_answers": sum(pair.known is not None and pair.mine == pair.other for pair, _ in judged),
        "wins": sum(each > 0.5 for each in values),
        "ties": sum(each == 0.5 for each in values),
        "losses": sum(each < 0.5 for each in values),
        "unjudged": len(pairs) - len(judged),
        "labels": sum(each is not None for each in people),
        "preference": mean(values, clusters, how),
        "corrected": mended,
        "win_or_tie": mean([each >= 0.5 for each in values], clusters, how),
    }
    return entry, mended


def agreement_of(
    pairs: Sequence[Pair], records: Sequence[Record], scores: Sequence[float | None], labels: Labels, how: Resampling
) -> list[Json]:
    """Raw agreement and Cohen's kappa (1960) for every two judges, and for each and all of them with people."""
    voices: dict[str, dict[int, float]] = {
        each.judge.name: {at: opinion.score for at, opinion in each.opinions.items()} for each in records
    }
    people = {at: said for at, pair in enumerate(pairs) if (said := label_of(pair, labels)) is not None}
    used = [each for each in records if each.used]
    couples = list(combinations(voices.items(), 2))
    if people:
        couples += [(voice, ("people", people)) for voice in voices.items()]
        if len(used) > 1:
            asked = {at: each for at, each in enumerate(scores) if each is not None and pairs[at].known is None}
            couples.append((("judges together", asked), ("people", people)))
    return [_agreement(first, second, pairs, how) for first, second in couples]


def _agreement(
    first: tuple[str, Mapping[int, float]],
    second: tuple[str, Mapping[int, float]],
    pairs: Sequence[Pair],
    how: Resampling,
) -> Json:
    from sklearn.metrics import cohen_kappa_score

    both = sorted(first[1].keys() & second[1].keys())
    mine, theirs = ([_word(voice[1][at]) for at in both] for voice in (first, second))
    same = [a == b for a, b in zip(mine, theirs, strict=True)]
    varied = len({*mine, *theirs}) > 1
    return {
        "first": first[0], "second": second[0], "n": len(both),
        "agreement": mean(same, [pairs[at].cluster for at in both], how),
        "kappa": float(cohen_kappa_score(mine, theirs)) if varied else None,
    }  # fmt: skip


def _word(score: float) -> str:
    return "win" if score > 0.5 else "loss" if score < 0.5 else "tie"


def sentences_of(name: str, entry: Json, records: Sequence[Record], budget: float) -> tuple[list[str], list[str]]:
    """Reasons against a gate that rests on these judgements, and what it stands on."""
    against: list[str] = []
    grounds: list[str] = []
    for each in records:
        told = each.entry["controls"]
        if not each.used:
            share = (
                f"in {told['value']:.0%} of {told['n']} control pairs"
                if told
                else "in no control pair (none was answered)"
            )
            words = (
                f"judge {each.judge.name} told the right answer from a stranger's {share}: its verdicts are not used"
            )
            (grounds if any(other.used for other in records) else against).append(words)
    missing = entry["unjudged"]
    if missing:
        out = any(each.judge.unasked for each in records)
        why = f"the budget of ${budget:g} ended" if out else "no judge answered"
        words = f"{missing} of {entry['rows'] + missing} pairs of {name} were not judged: {why}"
        failed = not out and missing > MAX_FAILED * (entry["rows"] + missing)
        (against if failed else grounds).append(words)
    if entry["corrected"] is None:
        few = f"{entry['labels']} human labels, {MIN_LABELS} are needed" if entry["labels"] else "no human labels"
        grounds.append(f"the judges' own errors are not corrected: {few}")
    else:
        grounds.append(f"preference as {entry['labels']} human labels correct it (prediction-powered inference)")
    return against, grounds
