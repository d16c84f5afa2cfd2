"""Escalation on a log with gold: the share that the student keeps and its risk, against the bound that was promised.

    python -m benchmarks.escalation --log banking77.jsonl.gz --gold banking77.gold.jsonl.gz --artifact ARTIFACT \\
        --student student.jsonl [--rows 1500] [--resplits 200] [--quick] [--json] [--keep]

The test rows of the log go once through the exported student (its answers and scores are kept in --student, which a
second run reads); the large model is the one that the log recorded. Each of 200 resplits draws a third of the rows for
calibration, finds the threshold there, and counts on the rest: share kept, answers kept that are wrong by gold, and how
good the answers of both together are. Beside it a router learned on the calibration rows, which decides on the text
alone: the same bound, its threshold from the half that it was not fitted to.

The checks. In the mean: the mean risk over the resplits is at most alpha (and two standard errors of it), which splits
of one pool must give, being exchangeable. With high probability: the rows are the population, calibration sets are
drawn from it with replacement, and the risk on all rows may be above alpha for at most delta of them (a risk counted on
some hundred other rows has a noise of its own, which no bound on the risk covers; it is shown beside).
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from potstill.calibration import conformal, learned, reliability
from potstill.calibration.ask import Answered, ask
from potstill.calibration.confidence import sequence_score
from potstill.calibration.conformal import Bound
from potstill.calibration.make import text_of
from potstill.calibration.record import NEVER, Scorer
from potstill.records import Example, Exchange
from potstill.serving.start import Served, load_artifact

from .lines import read_lines
from .record import Record, arguments

SHARE_FOR_CALIBRATION = 1 / 3
BOUNDS = (
    Bound(0.05), Bound(0.1), Bound(0.05, 0.1), Bound(0.1, 0.1), Bound(0.1, 0.1, "kept"),
)  # fmt: skip
SCORES = ("label", "product", "mean", "least")


@dataclass(frozen=True)
class Row:
    """One test row: its text, the student's answer and scores, and whether each model is right by gold."""

    id: str
    text: str
    answer: str | None
    scores: dict[str, float]
    student_right: bool
    large_right: bool
    agree: bool


def main() -> int:
    """Measure and report; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--gold", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True, help="the student's answers: read, or asked and written")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--resplits", type=int, default=200)
    args = parser.parse_args()
    record = Record("escalation", quick=args.quick, packages=("numpy", "scikit-learn", "xllamacpp"))
    rows = read_rows(args.log, args.gold, args.artifact, args.student, args.rows)
    base(record, rows)
    resplits = 50 if args.quick else args.resplits
    for bound in BOUNDS:
        by_score(record, rows, bound, resplits)
    by_learned(record, rows, BOUNDS[0], resplits)
    return record.finish(as_json=args.json, keep=args.keep)


def read_rows(log: Path, gold_file: Path, artifact: Path, kept: Path, most: int) -> list[Row]:
    """Test rows with the student's answers: those in `kept`, the missing ones asked for and kept there."""
    served = load_artifact(artifact)
    gold = {each["id"]: each["answer"] for each in read_lines(gold_file)}
    exchanges = [Exchange.from_json(each) for each in read_lines(log) if each["metadata"].get("split") == "test"]
    if len(exchanges) > most:
        exchanges = random.Random(0).sample(exchanges, most)
    answers = students(served, exchanges, kept)
    return [row_of(served, each, gold[each.id], answers[each.id]) for each in exchanges if each.id in gold]


def students(served: Served, exchanges: Sequence[Exchange], kept: Path) -> dict[str, Answered]:
    """The student's answer to each exchange by its id."""
    found = {}
    if kept.is_file():
        lines = [each for each in read_lines(kept) if each["artifact"] == served.digest]
        found = {each["id"]: Answered(each["id"], each["text"], each["content"]) for each in lines}
    missing = [each for each in exchanges if each.id not in found]
    if missing:
        kept.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            Example(each.id, each.conversation, served.rule.apply(each.messages), [], "", None, "") for each in missing
        ]
        with kept.open("a") as stream:  # as they come: a run that is ended loses none
            for each in ask(served, rows, slots=2, threads=1):
                found[each.id] = each
                stream.write(json.dumps(asdict(each) | {"artifact": served.digest}) + "\n")
                stream.flush()
    return found


def row_of(served: Served, exchange: Exchange, gold: str, answer: Answered) -> Row:
    """Scores and what is right, by the task's own reading."""
    task = served.task
    parsed, large = task.parse(answer.text or ""), task.parse(task.text_of(exchange.answer))
    wanted = task.from_gold(gold).value
    scorer = Scorer(task, "label")
    scores = {"label": scorer.score(answer.content, parsed.value) if parsed.valid else None}
    scores |= {kind: sequence_score(answer.content, kind) for kind in ("product", "mean", "least")}
    return Row(
        exchange.id,
        text_of(served.rule.apply(exchange.messages)),
        parsed.value if parsed.valid else None,
        {kind: NEVER if score is None else score for kind, score in scores.items()},
        parsed.valid and parsed.value == wanted,
        large.valid and large.value == wanted,
        parsed.valid and large.valid and parsed.value == large.value,
    )


def base(record: Record, rows: Sequence[Row]) -> None:
    """What both models are without escalation, and how well each score tells right from wrong answers."""
    record.figure("test rows", len(rows), "")
    record.figure("student alone: right", mean([each.student_right for each in rows]), "")
    record.figure("large model alone: right", mean([each.large_right for each in rows]), "")
    record.figure("either right (no router can do better)", mean([r.student_right or r.large_right for r in rows]), "")
    for kind in SCORES:
        scores = [each.scores[kind] for each in rows]
        record.figure(f"{kind} score: AUROC of right answers", auroc(scores, [r.student_right for r in rows]), "")
    answered = [each for each in rows if each.scores["label"] != NEVER]
    scores, losses = [r.scores["label"] for r in answered], [float(not r.student_right) for r in answered]
    halves = [(scores[at::2], losses[at::2]) for at in (0, 1)]
    fitted = reliability.fit(*halves[0])
    record.figure("Brier, label score", reliability.brier(halves[1][0], halves[1][1]), "second half of the rows")
    record.figure(
        "Brier, calibrated on the first half",
        reliability.brier([fitted.probability(each) for each in halves[1][0]], halves[1][1]),
        "second half of the rows",
    )


def by_score(record: Record, rows: Sequence[Row], bound: Bound, resplits: int) -> None:
    """Escalation by the label score: threshold on a third, share and risk on the rest."""
    found = []
    for seed in range(resplits):
        first, rest = halves_of(rows, seed, SHARE_FOR_CALIBRATION)
        above = conformal.threshold([r.scores["label"] for r in first], [loss(r) for r in first], bound)
        found.append(outcome(rest, [r.scores["label"] > max(above, NEVER) for r in rest]))
    told(record, f"confidence, {name_of(bound)}", bound, found)
    if bound.delta is not None:
        broken = mean([each > bound.alpha for each in population_risks(rows, bound, resplits)])
        name = f"confidence, {name_of(bound)}: share of draws with a risk above {bound.alpha:g}"
        record.check(name, broken, at_most=bound.delta)


def population_risks(rows: Sequence[Row], bound: Bound, draws: int) -> list[float]:
    """The risk on all rows of thresholds from calibration sets that are drawn from them with replacement."""
    scores, losses = [r.scores["label"] for r in rows], [loss(r) for r in rows]
    found = []
    for seed in range(draws):
        picked = random.Random(seed).choices(range(len(rows)), k=round(SHARE_FOR_CALIBRATION * len(rows)))
        above = conformal.threshold([scores[at] for at in picked], [losses[at] for at in picked], bound)
        kept = conformal.kept(scores, losses, max(above, NEVER))
        found.append(kept.of_kept if bound.of == "kept" else kept.of_all)
    return found


def by_learned(record: Record, rows: Sequence[Row], bound: Bound, resplits: int) -> None:
    """A router that sees the text alone: fitted to half of the calibration rows, its threshold from the other half."""
    found, ranks = [], []
    for seed in range(resplits):
        calibration, rest = halves_of(rows, seed, SHARE_FOR_CALIBRATION)
        first, second = halves_of(calibration, seed, 0.5)
        router = learned.fit([r.text for r in first], [loss(r) for r in first])
        above = conformal.threshold([router.probability(r.text) for r in second], [loss(r) for r in second], bound)
        scores = [router.probability(r.text) for r in rest]
        found.append(outcome(rest, [score > above for score in scores]))
        ranks.append(auroc(scores, [r.student_right for r in rest]))
    record.figure("learned: AUROC of right answers", ranks, "median and range over resplits")
    told(record, f"learned, {name_of(bound)}", bound, found)


@dataclass(frozen=True)
class Outcome:
    """One resplit: share kept by the student, its risk of all and of kept, how often the two together are right."""

    share: float
    of_all: float
    of_kept: float
    together: float


def outcome(rows: Sequence[Row], kept: Sequence[bool]) -> Outcome:
    wrong = sum(loss(row) for row, stays in zip(rows, kept, strict=True) if stays)
    right = mean([row.student_right if stays else row.large_right for row, stays in zip(rows, kept, strict=True)])
    return Outcome(mean(kept), wrong / len(rows), wrong / sum(kept) if any(kept) else 0.0, right)


def told(record: Record, name: str, bound: Bound, found: Sequence[Outcome]) -> None:
    """Figures over the resplits, and the promise held against them."""
    risks = [each.of_kept if bound.of == "kept" else each.of_all for each in found]
    record.figure(f"{name}: share kept by the student", [each.share for each in found], "median and range")
    record.figure(f"{name}: risk", risks, f"of {bound.of}; median and range")
    record.figure(f"{name}: right, both together", [each.together for each in found], "median and range")
    record.figure(f"{name}: mean risk", mean(risks), f"of {bound.of}")
    if bound.delta is None:
        # A random split of one pool is exchangeable, so that the promise holds of it but for the number of splits.
        error = statistics.stdev(risks) / len(risks) ** 0.5
        record.check(f"{name}: mean risk, alpha and two standard errors", mean(risks), at_most=bound.alpha + 2 * error)
    else:
        above = mean([each > bound.alpha for each in risks])
        record.figure(
            f"{name}: resplits whose counted risk is above {bound.alpha:g}", above, "share, test noise included"
        )


def loss(row: Row) -> float:
    """1 for an answer that is valid and wrong: an invalid one is always passed on."""
    return float(row.answer is not None and not row.student_right)


def name_of(bound: Bound) -> str:
    how = "mean" if bound.delta is None else f"with {1 - bound.delta:.0%}"
    return f"{bound.alpha:g} of {bound.of} {how}"


def halves_of(rows: Sequence[Row], seed: int, share: float) -> tuple[list[Row], list[Row]]:
    order = list(rows)
    random.Random(seed).shuffle(order)
    cut = round(share * len(order))
    return order[:cut], order[cut:]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def auroc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """The probability that a right answer scores above a wrong one (ties count half)."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(right, scores))


if __name__ == "__main__":
    raise SystemExit(main())
