"""The judges' part of an evaluation: what `evaluation.run` calls, in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.intervals import Difference, Resampling, decide
from potstill.power import PowerRule
from potstill.progress import Progress
from potstill.records import Json, Prediction
from potstill.stage import Shared
from potstill.tasks import Metric, Task

from ..rows import HeldOut
from .ask import Judge
from .kept import Kept
from .labels import Labels, read_labels, write_sheet
from .outcome import Outcome, agreement_of, candidate_figures, record_of, scores_of, sentences_of
from .pairs import Pair, controls_of, pairs_of
from .prompt import CRITERIA
from .settings import JudgeSettings

PREFERENCE = Metric("preference", {"judge": 1.0}, {"judged": 1.0})
PAIRS_AT_ONCE = 64
SHEET = "to_label.jsonl"
Predictions = Mapping[str, Sequence[Prediction]]


def judged_task(task: Task, settings: JudgeSettings | None) -> Task:
    """The task with `preference` as its primary metric: a win is 1, a tie a half, a loss 0, the baseline a half."""
    if settings is None:
        return task
    # Rows may have a verdict and no reference: what compares with one is then undefined, not nought.
    others = [each if each.denominator else replace(each, denominator={"compared": 1.0}) for each in task.metrics]
    made: Task = replace(task, metrics=(PREFERENCE, *others))  # type: ignore[type-var]
    return made


def judge_predictions(
    settings: JudgeSettings | None,
    *,
    candidate: str,
    baseline: str,
    rows: HeldOut,
    predictions: Predictions,
    shared: Shared,
    out: Path,
    how: Resampling,
    others: Sequence[str] = (),
) -> tuple[Predictions, Outcome | None]:
    """Ask the judges, and give every prediction its score (see `with_scores`); unchanged without judges.

    `others` are candidates that the gate may choose instead of `candidate`; the recipe may name more.
    Verdicts are kept under `cache/judgements`, so that a second run pays for what is missing alone. Raises
    PotstillError when a judge is of no use; what was paid for is kept.
    """
    if settings is None:
        return predictions, None
    names = [each for each in dict.fromkeys([candidate, *others, *settings.candidates]) if each != baseline]
    pairs = {name: pairs_of(name, baseline, rows.examples, predictions, settings.seed) for name in names}
    controls = controls_of(baseline, rows.examples, predictions, settings.controls, settings.seed)
    with ExitStack() as stack:
        kept = stack.enter_context(Kept(shared.cache_dir / "judgements" / f"{shared.name}.jsonl"))
        judges = [stack.enter_context(closing(Judge(each, settings, kept))) for each in settings.models]
        _ask(judges, [*controls, *(pair for found in pairs.values() for pair in found)], settings)
        labels = read_labels(Path(settings.human)) if settings.human else {}
        outcome = _outcome(settings, candidate, baseline, pairs, controls, judges, labels, how, kept.committed_usd)
    write_sheet(out / SHEET, pairs[candidate], settings.seed)
    return with_scores(predictions, outcome), outcome


def _ask(judges: Sequence[Judge], pairs: Sequence[Pair], settings: JudgeSettings) -> None:
    """Every judge about every pair in both orders, a few pairs at a time, so that money ends for all judges alike."""
    due = [each for each in pairs if each.known is None]
    with Progress("judged pairs", len(due), "pairs") as progress:
        for start in range(0, len(due), PAIRS_AT_ONCE):
            some = due[start : start + PAIRS_AT_ONCE]
            questions = [question for pair in some for question in pair.questions(settings.criteria)]
            for judge in judges:
                judge.ask(questions)
            progress.advance(len(some), note=f"${sum(each.usd for each in judges):.4f}")


def _outcome(
    settings: JudgeSettings,
    candidate: str,
    baseline: str,
    pairs: Mapping[str, Sequence[Pair]],
    controls: Sequence[Pair],
    judges: Sequence[Judge],
    labels: Labels,
    how: Resampling,
    spent_usd: float,
) -> Outcome:
    every = [pair for found in pairs.values() for pair in found]
    records = [record_of(each, every, controls, settings.criteria, how) for each in judges]
    scores = scores_of(every, records)
    entries: dict[str, Json] = {}
    mended: dict[str, Json | None] = {}
    by_row: dict[str, dict[str, float]] = {}
    start = 0
    for name, found in pairs.items():
        mine = scores[start : start + len(found)]
        start += len(found)
        entries[name], mended[name] = candidate_figures(found, mine, labels, how)
        by_row[name] = {pair.id: score for pair, score in zip(found, mine, strict=True) if score is not None}
    said = {name: sentences_of(name, entry, records, settings.budget_usd) for name, entry in entries.items()}
    notes = [f"{each[:1].upper()}{each[1:]}." for parts in said[candidate] for each in parts]
    if len(judges) == 1:
        notes.append("One judge alone: nothing says how far another would agree.")
    details = {
        "baseline": baseline, "criteria": settings.criteria or CRITERIA, "budget_usd": settings.budget_usd,
        "spent_usd": spent_usd, "notes": notes, "candidates": entries,
        "judges": {each.judge.name: each.entry for each in records},
        "agreement": agreement_of(every, records, scores, labels, how),
    }  # fmt: skip
    refusals, grounds = ({name: tuple(parts[at]) for name, parts in said.items()} for at in (0, 1))
    return Outcome(baseline, by_row, mended, details, refusals, grounds)


def with_scores(predictions: Predictions, outcome: Outcome) -> dict[str, list[Prediction]]:
    """Predictions with `judge` among the components of `quality`.

    The baseline's score is a half by definition. A row that no judge judged has no quality, so that a comparison
    counts the rows that it rests on.
    """
    found: dict[str, list[Prediction]] = {}
    for name, group in predictions.items():
        scores = outcome.scores.get(name)
        found[name] = []
        for each in group:
            agreement = {**each.agreement, "compared": 1.0} if each.agreement else {}
            quality = {**each.quality, "compared": 1.0} if each.quality else {}
            if name == outcome.baseline:
                quality |= {"judge": 0.5, "judged": 1.0}
            elif scores is not None:
                quality = {**quality, "judge": scores[each.id], "judged": 1.0} if each.id in scores else {}
            found[name].append(replace(each, quality=quality, agreement=agreement))
    return found


def by_people(
    outcome: Outcome | None,
    comparisons: Sequence[Json],
    entries: dict[str, Json],
    margin: float,
    how: Resampling,
    power: PowerRule | None = None,
) -> list[Json]:
    """The comparisons with the preference that human labels correct, where there are enough of them.

    The figures of candidates in `entries` follow, so that the report says one thing; the baseline's half has no error.
    """
    if outcome is None:
        return list(comparisons)
    base = entries[outcome.baseline]["quality"]
    if base is not None and base["metric"] == PREFERENCE.name:
        base |= {"low": base["value"], "high": base["value"], "method": "definition"}
    for name, figure in outcome.corrected.items():
        if figure is not None and entries[name]["quality"] is not None:
            entries[name]["quality"] |= {key: figure[key] for key in ("value", "low", "high", "method")}
    return [_by_people(each, outcome, margin, how, power) for each in comparisons]


def _by_people(comparison: Json, outcome: Outcome, margin: float, how: Resampling, power: PowerRule | None) -> Json:
    figure = outcome.corrected.get(comparison["candidate"])
    if figure is None or comparison["baseline"] != outcome.baseline or comparison["metric"] != PREFERENCE.name:
        return comparison
    found = Difference(
        PREFERENCE.name, figure["value"] - 0.5, figure["low"] - 0.5, figure["high"] - 0.5, comparison["n"],
        comparison["clusters"], comparison["wins"], comparison["losses"],
    )  # fmt: skip
    decision = decide(found, margin, how.alpha, power)
    return comparison | {
        "difference": found.value, "low": found.low, "high": found.high, "verdict": decision.verdict,
        "reason": decision.reason, "rows_needed": decision.rows_needed,
    }  # fmt: skip


def explained(gate: dict[str, Any], outcome: Outcome | None) -> Json:
    """The gate with what the judgements say for and against it. Judges that cannot judge never let anything pass."""
    if outcome is None:
        return gate
    refusals, grounds = (found.get(gate["candidate"], ()) for found in (outcome.refusals, outcome.grounds))
    kept = [each for each in gate["reasons"] if not each.startswith("no gold: ")]
    return gate | {
        "passed": gate["passed"] and not refusals, "reasons": [*refusals, *kept, *grounds], "basis": "quality",
        **({"shipped": None} if refusals and "shipped" in gate else {}),
    }  # fmt: skip
