"""Generation: reference metrics by the field's own libraries, refusals and length; SQL by what it returns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from potstill.intervals import Resampling
from potstill.records import Json
from potstill.tasks import Metric

from .figures import Resampled, Scored, mean, ratio
from .refusals import refusal_in

if TYPE_CHECKING:
    from .figures import Array

NOTES = (
    "chrF and BLEU by sacrebleu (chrF a mean over answers, BLEU over all of them together, 0 to 100), ROUGE-L by "
    "rouge_score over words of any script. They measure likeness to one reference, not quality.",
    "Refusals are found by a list of English openings: a lower bound.",
)
NO_LIBRARIES = "chrF, BLEU and ROUGE-L are missing: install potstill[metrics]."
_WORD = re.compile(r"\w+", re.UNICODE)
MOST_CELLS = 200_000_000  # word pairs that ROUGE-L compares: about a minute; rows beyond are left out, and n says so
_ORDERS = 4  # of BLEU's n-grams


def generation_details(rows: Sequence[Scored], how: Resampling) -> Json:
    """Reference metrics (absent where their libraries are), refusal rate, length against the reference."""
    clusters = [row.cluster for row in rows]
    figures: dict[str, Json | None] = {}
    try:
        figures |= _reference_metrics(rows, clusters, how)
    except ModuleNotFoundError as fault:
        if (fault.name or "").partition(".")[0] not in ("sacrebleu", "rouge_score"):
            raise
    lengths = [{"found": _words(row.text), "wanted": _words(str(row.reference))} for row in rows]
    figures["refusals"] = mean([refusal_in(row.text) is not None for row in rows], clusters, how)
    figures["refusals_of_reference"] = mean([refusal_in(str(row.reference)) is not None for row in rows], clusters, how)
    figures["length_ratio"] = ratio(Metric("length", {"found": 1.0}, {"wanted": 1.0}), lengths, clusters, how, "number")
    return {"figures": figures}


def sql_details(rows: Sequence[Scored], task: Any, how: Resampling) -> Json:
    """Execution match, queries that run, and why the others do not."""
    from collections import Counter

    clusters = [row.cluster for row in rows]
    scores = [task.score(row.value, row.reference) for row in rows]
    reasons = Counter(
        _kind_of(task.sql.run(row.value).error)
        for row in rows
        if row.value is not None and task.sql.run(row.value).error
    )
    return {
        "figures": {
            "execution_match": mean([each["execution"] for each in scores], clusters, how),
            "executes": mean([each["executes"] for each in scores], clusters, how),
            "exact_text": mean([each["exact"] for each in scores], clusters, how),
        },
        "failures": [{"reason": reason, "n": n} for reason, n in reasons.most_common(10)],
    }


def _kind_of(error: str | None) -> str:
    """An error without the names in it."""
    return re.sub(r"(no such \w+|near|ambiguous column name|no such column): ?.*", r"\1", error or "")


def _words(text: str) -> float:
    return float(len(_WORD.findall(text)))


class _Words:
    """Words of any script: rouge_score's own tokenizer keeps a-z and digits alone."""

    def tokenize(self, text: str) -> list[str]:
        return [each.casefold() for each in _WORD.findall(text)]


def _reference_metrics(rows: Sequence[Scored], clusters: Sequence[str], how: Resampling) -> dict[str, Json | None]:
    """sacrebleu's chrF (Popović 2015) and BLEU (Papineni et al. 2002, Post 2018), ROUGE-L's F (Lin 2004)."""
    import numpy as np
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    chrf, bleu, rouge = CHRF(), BLEU(), RougeScorer(["rougeL"], tokenizer=_Words())
    terms = np.zeros((len(rows), 2 + 2 * _ORDERS))
    characters: list[float] = []
    longest: list[float] = []
    compared: list[str] = []
    cells = 0
    for at, row in enumerate(rows):
        found, wanted = row.text.strip(), str(row.reference)
        characters.append(chrf.sentence_score(found, [wanted]).score)
        cells += len(found.split()) * len(wanted.split())
        if cells <= MOST_CELLS:
            longest.append(rouge.score(wanted, found)["rougeL"].fmeasure)
            compared.append(row.cluster)
        one = bleu.corpus_score([found], [[wanted]])
        terms[at] = [one.sys_len, one.ref_len, *one.counts, *one.totals]
    return {
        "chrf": mean(characters, clusters, how, "number"),
        "bleu": Resampled(terms, clusters, how).figure(_bleu, "number"),
        "rouge_l": mean(longest, compared, how),
    }


def _bleu(sums: Array) -> Array:
    """BLEU of summed statistics (answer and reference lengths, matches and n-grams of each order), as sacrebleu's.

    Its default smoothing (Chen & Cherry 2014, method 3): the k-th order without a match counts 1 / (2**k * n-grams).
    """
    import numpy as np

    found, wanted = sums[:, 0], sums[:, 1]
    matches, totals = sums[:, 2 : 2 + _ORDERS], sums[:, 2 + _ORDERS :]
    misses = np.cumsum((matches == 0) & (totals > 0), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        smoothed = np.where(matches > 0, matches, 1.0 / 2.0**misses) / totals
        brevity = np.exp(np.minimum(0.0, 1.0 - wanted / found))
        score: Array = 100 * brevity * np.exp(np.log(smoothed).mean(axis=1))
    # No n-gram of the highest order in any answer, or no match at all: sacrebleu says 0.
    return np.where((totals > 0).all(axis=1) & (matches.sum(axis=1) > 0) & (found > 0), score, 0.0)
