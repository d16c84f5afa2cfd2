"""Model judges for generated answers: pairs in both orders, several judges, human labels, a rate corrected by them.

    judged, outcome = judge_predictions(settings.judge, ...)     asks, scores, and adds the scores to the predictions
    task = judged_task(task, settings.judge)                     `preference` is then its primary metric
    comparisons = by_people(outcome, comparisons, entries, ...)  the corrected rate in place of the judged one
    gate = explained(gate, outcome)                              what the verdict stands on, and what speaks against it

`outcome.details` becomes `report["details"]["judge"]`:

    {"baseline", "criteria", "budget_usd", "spent_usd", "notes": [...],
     "candidates": {name: {"rows", "asked_about", "equal_answers", "wins", "ties", "losses", "unjudged", "labels",
                           "preference": FIGURE, "corrected": FIGURE or None, "win_or_tie": FIGURE}},
     "judges": {name: {"model", "asked", "failed", "not_asked", "unreadable", "consistent": FIGURE,
                       "first_shown": FIGURE, "controls": FIGURE, "used", "usd", "failures"}},
     "agreement": [{"first", "second", "n", "agreement": FIGURE, "kappa"}]}
"""

from __future__ import annotations

from .outcome import Outcome
from .settings import JudgeModel, JudgePrice, JudgeSettings, judge_inputs, refuse_unready
from .verdict import by_people, explained, judge_predictions, judged_task

__all__ = [
    "JudgeModel",
    "JudgePrice",
    "JudgeSettings",
    "Outcome",
    "by_people",
    "explained",
    "judge_inputs",
    "judge_predictions",
    "judged_task",
    "refuse_unready",
]
