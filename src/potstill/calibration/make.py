"""From an exported student and the validation rows of its dataset to the folder `calibration-KEY`."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.calibration import learned
from potstill.calibration.ask import Answered, ask
from potstill.calibration.confidence import ScoreKind
from potstill.calibration.conformal import Bound
from potstill.calibration.learned import LearnedRouter
from potstill.calibration.record import NEVER, Against, Calibration, Points, Scorer, loss_of
from potstill.dataset import read_examples
from potstill.errors import PotstillError, RecipeError
from potstill.manifest import MANIFEST, Input, read_manifest, sha256_file, stage_key, write_manifest
from potstill.progress import say
from potstill.prompt import joined
from potstill.records import Example, Json, Message
from potstill.serving.start import Served, load_artifact
from potstill.tasks import Task

FEWEST_ROWS = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for; `rows` of the validation split at most, drawn by `seed`; `format` as in `serve.format`."""

    bound: Bound
    against: Against = "answer"
    score: ScoreKind | None = None
    learned: bool = False
    rows: int | None = None
    format: str | None = None
    constrained: bool = True
    seed: int = 0


def calibrate(
    wanted: Wanted, artifact: Path, out: Path, *, gold: Path | None = None, threads: int | None = None, slots: int = 4
) -> Path:
    """The finished folder under `out`; one that stands already is given back unasked.

    Raises RecipeError where gold answers are asked for and there is no file, PotstillError for too few rows.
    """
    if wanted.against == "gold" and gold is None:
        raise RecipeError(["--against gold: the recipe names no evaluate.gold; name one, or leave it out"])
    served = load_artifact(artifact, wanted.format)
    dataset = dataset_of(artifact)
    inputs = [Input("artifact", str(artifact), served.digest), dataset]
    if wanted.against == "gold" and gold is not None:
        inputs.append(Input("gold", str(gold), sha256_file(gold)))
    settings = asdict(wanted) | {"format": served.format}
    folder = out / f"calibration-{(key := stage_key('calibrate', settings, inputs))}"
    if (folder / MANIFEST).is_file():
        say(f"calibrate: unchanged: {folder}")
        return folder
    examples = drawn(read_examples(Path(dataset.path), "validation"), wanted.rows, wanted.seed)
    references = references_of(served.task, examples, wanted.against, gold)
    judged = [each for each in examples if each.id in references]
    if len(judged) < FEWEST_ROWS:
        raise PotstillError(f"{len(judged)} validation rows to judge by, expected at least {FEWEST_ROWS}")
    answers = list(ask(served, judged, constrained=wanted.constrained, slots=slots, threads=threads))
    found = calibration_of(wanted, served, dataset.digest, judged, answers, references)
    shutil.rmtree(folder, ignore_errors=True)  # what a run that was ended left
    folder.mkdir(parents=True)
    found.write(folder)
    write_manifest(
        folder, "calibration", settings_passed=settings, settings_used=settings, inputs=inputs, facts=found.facts(),
        key=key, command="potstill calibrate",
    )  # fmt: skip
    return folder


def dataset_of(artifact: Path) -> Input:
    """The dataset that an artifact was made from; raises ManifestMismatch where it is another by now."""
    named = read_manifest(artifact, "artifact", verify=False).input("dataset")
    # Where the working folder was moved, the dataset stands beside the artifact under its own name.
    for place in (Path(named.path), artifact.parent / Path(named.path).name):
        if (place / MANIFEST).is_file() and read_manifest(place, "dataset", verify=False).digest == named.digest:
            return Input("dataset", str(place), named.digest)
    raise PotstillError(
        f"{artifact}: its dataset ({named.path}, {named.digest[:12]}) is not there as it was; restore it"
    )


def drawn(examples: Sequence[Example], most: int | None, seed: int) -> list[Example]:
    """All rows, or so many drawn at random."""
    if most is None or len(examples) <= most:
        return list(examples)
    return random.Random(seed).sample(list(examples), most)


def references_of(task: Task, examples: Sequence[Example], against: Against, gold: Path | None) -> dict[str, Any]:
    """What each row is judged by, by id; rows without a valid one are left out."""
    answers: Mapping[str, Any]
    if against == "gold":
        assert gold is not None
        answers = read_gold(gold)
    elif against == "large":
        answers = {each.id: each.teacher_answer for each in examples}
    else:
        answers = {each.id: each.answer for each in examples}
    found = {}
    for each in examples:
        if answers.get(each.id) is not None and (parsed := task.from_gold(answers[each.id])).valid:
            found[each.id] = parsed.value
    return found


def read_gold(path: Path) -> dict[str, Any]:
    """Gold answers by id."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return {line["id"]: line["answer"] for line in map(json.loads, lines)}


def calibration_of(
    wanted: Wanted, served: Served, dataset: str, examples: Sequence[Example], answers: Sequence[Answered],
    references: Mapping[str, Any],
) -> Calibration:  # fmt: skip
    """Scores and losses of the answers, and where asked for a router learned on one half of the rows."""
    score: ScoreKind = wanted.score or Scorer.usual(served.task)
    scorer = Scorer(served.task, score)
    points = [
        point_of(served.task, scorer, each, references[each.id], row.tools)
        for row, each in zip(examples, answers, strict=True)
    ]
    router, routed = None, Points()
    if wanted.learned:
        texts = [text_of(each.messages) for each in examples]
        router, routed = learn(texts, points, wanted.seed)
    return Calibration(
        served.digest, served.format, dataset, served.task.kind, score, wanted.against, points, wanted.bound, routed,
        router,
    )  # fmt: skip


def point_of(
    task: Task, scorer: Scorer, answer: Answered, reference: Any, tools: Sequence[Json] = ()
) -> tuple[float, float]:
    """(score, loss); (NEVER, 0) for what is passed on however sure: no answer, an invalid one, one without scores."""
    parsed = task.parse(answer.text, tools) if answer.text is not None else None
    if parsed is None or not parsed.valid:
        return NEVER, 0.0
    found = scorer.score(answer.content, parsed.value)
    return (NEVER, 0.0) if found is None else (found, loss_of(task, parsed.value, reference))


def learn(texts: Sequence[str], points: Points, seed: int) -> tuple[LearnedRouter, Points]:
    """A router fitted to half of the rows, and what it says of the other half: its threshold must not see its own."""
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    wrong = [1.0 if score == NEVER else loss for score, loss in points]  # asking for an invalid answer is a waste too
    router = learned.fit([texts[at] for at in first], [wrong[at] for at in first])
    return router, [(router.probability(texts[at]), points[at][1]) for at in second]


def text_of(messages: Sequence[Message]) -> str:
    """What a learned router reads: the last thing that the user said, in the student's prompt."""
    said = [joined(each.get("content")) for each in messages if each.get("role") == "user"]
    return next((each for each in reversed(said) if isinstance(each, str)), "")
