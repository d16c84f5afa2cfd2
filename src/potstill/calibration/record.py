"""The folder `calibration-KEY`: scores and losses of validation rows, the threshold that follows, and what it promises.

`calibration.json` holds no text and no id: pairs of a score and a loss, from which a server can find the threshold of
another bound. `learned.npz`, where there is one, is the router that decides before the student is asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from potstill.calibration import conformal, reliability
from potstill.calibration.confidence import LabelScorer, ScoreKind, sequence_score
from potstill.calibration.conformal import Bound
from potstill.calibration.learned import LearnedRouter
from potstill.errors import ManifestMismatch
from potstill.manifest import read_manifest, write_atomically
from potstill.records import Json
from potstill.tasks import Task

CALIBRATION, LEARNED = "calibration.json", "learned.npz"
Against = Literal["answer", "large", "gold"]
AGAINST = {
    "answer": "the dataset's answer (a correction or relabelling where there is one, else the large model's)",
    "large": "the large model's answer",
    "gold": "the gold answer",
}
WHOLE = ("accuracy", "execution", "exact")  # metrics of a whole answer, right or wrong
NEVER = -1.0  # the score of what is always passed on; thresholds lie no lower
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Calibration:
    """`points` are (score, loss) of validation rows; a row without a valid answer is always passed on: (-1, 0).

    `routed` are (probability by the learned router, loss) of rows that it was not fitted to.
    """

    artifact: str
    format: str
    dataset: str
    kind: str
    score: ScoreKind
    against: Against
    points: Points
    bound: Bound
    routed: Points
    learned: LearnedRouter | None = None

    def threshold(self, bound: Bound | None = None) -> float:
        """The score above which the student keeps its answer."""
        return _threshold(self.points, bound or self.bound)

    def threshold_of_learned(self, bound: Bound | None = None) -> float:
        """The learned router's probability above which the student is asked at all."""
        return _threshold(self.routed, bound or self.bound)

    @cached_property
    def reliability(self) -> reliability.Reliability:
        """Scores to probabilities of being right."""
        answered = [each for each in self.points if each[0] >= 0] or [(0.0, 1.0)]
        return reliability.fit(*_columns(answered))

    def promise(self, bound: Bound | None = None) -> str:
        return (bound or self.bound).words(AGAINST[self.against])

    def facts(self) -> Json:
        """What the manifest and the command say: threshold, share kept, risks, the promise in words."""
        above = self.threshold()
        found = conformal.kept(*_columns(self.points), above)
        raw = [each for each in self.points if each[0] >= 0]
        facts: Json = {
            "artifact": self.artifact, "format": self.format, "dataset": self.dataset, "score": self.score,
            "against": self.against, "rows": len(self.points), "without_valid_answer": len(self.points) - len(raw),
            "bound": asdict(self.bound), "threshold": _finite(above), "kept": asdict(found), "promise": self.promise(),
        }  # fmt: skip
        if raw:
            facts["brier"] = {
                "score": reliability.brier(*_columns(raw)),
                "calibrated": reliability.brier([self.reliability.probability(s) for s, _ in raw], _columns(raw)[1]),
            }
        if self.learned is not None:
            level = self.threshold_of_learned()
            facts["learned"] = {
                "rows": len(self.routed), "threshold": _finite(level),
                "kept": asdict(conformal.kept(*_columns(self.routed), level)),
            }  # fmt: skip
        return facts

    def write(self, folder: Path) -> None:
        """All but the manifest."""
        body = asdict(self) | {"facts": self.facts(), "curve": conformal.curve(*_columns(self.points))}
        del body["learned"]
        write_atomically(folder / CALIBRATION, json.dumps(body, indent=1).encode())
        if self.learned is not None:
            self.learned.write(folder / LEARNED)

    @classmethod
    def read(cls, folder: Path) -> Calibration:
        """A finished folder, verified; raises ManifestMismatch for any other."""
        manifest = read_manifest(folder, "calibration")
        try:
            data: dict[str, Any] = json.loads((folder / CALIBRATION).read_text())
            data["bound"] = Bound(**data["bound"])
            data["points"], data["routed"] = ([(float(s), float(x)) for s, x in data[k]] for k in ("points", "routed"))
            for derived in ("facts", "curve"):
                data.pop(derived, None)
            learned = LearnedRouter.read(folder / LEARNED) if LEARNED in manifest.files else None
            return cls(**data, learned=learned)
        except (OSError, ValueError, TypeError, KeyError) as fault:
            raise ManifestMismatch(f"{folder / CALIBRATION}: not a calibration ({fault}); calibrate again") from fault


class Scorer:
    """How sure an answer is, in the terms of one calibration."""

    def __init__(self, task: Task, score: ScoreKind) -> None:
        constraint = task.constraint()
        choices = constraint.choices if constraint is not None else ()
        self.labels = LabelScorer(choices) if choices else None
        self.kind: ScoreKind = score if self.labels is not None or score != "label" else "mean"

    @staticmethod
    def usual(task: Task) -> ScoreKind:
        """The score for a task where nobody chose one."""
        return "label" if task.kind == "classification" else "mean"

    def probabilities(self, content: Any) -> dict[str, float] | None:
        """Each label's probability, for a task with labels."""
        return self.labels.probabilities(content) if self.labels is not None else None

    def score(self, content: Any, value: Any) -> float | None:
        """The score of an answer whose parsed value is `value`; None where its tokens tell none."""
        if self.kind != "label":
            return sequence_score(content, self.kind)
        found = self.probabilities(content)
        return found.get(value) if found is not None else None


def loss_of(task: Task, value: Any, reference: Any) -> float:
    """How wrong a value is, 0 to 1: the whole answer where the task can tell exact from not, else its first metric."""
    metric = next((each for each in task.metrics if each.name in WHOLE), task.metrics[0])
    row = task.score(value, reference)
    lower = sum(weight * row.get(name, 0.0) for name, weight in metric.denominator.items()) or 1.0
    upper = sum(weight * row.get(name, 0.0) for name, weight in metric.numerator.items())
    return 1.0 - max(0.0, min(1.0, upper / lower))


def _threshold(points: Sequence[tuple[float, float]], bound: Bound) -> float:
    return max(NEVER, conformal.threshold(*_columns(points), bound)) if points else float("inf")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [score for score, _ in points], [loss for _, loss in points]


def _finite(level: float) -> float | str:
    if level == float("inf"):
        return "nothing is kept"
    return level if level > NEVER else "every valid answer is kept"
