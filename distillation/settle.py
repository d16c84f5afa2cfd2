"""What happens to rows between the split and the files, besides the audit. Training and validation lose what teaches
nothing, stands in an evaluation file, passes a cap or a budget, or is a duplicate; the test split stays as it came.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.dataset import write_preferences
from potstill.prompt import PromptRule
from potstill.records import Exchange, Json
from potstill.tasks import Task

from .boilerplate import KIND, Boilerplate, boilerplate_answers
from .decontaminate import Contamination, Decontaminate
from .describe import trusted
from .passes import Rows, Work
from .poisoning import Poisoning, cap_reasons, label_shifts
from .preferences import find_preferences
from .redact import Redact, comparable
from .sample import Budget, choose_rows
from .split import TRAIN, VALIDATION, Split
from .spool import cells, read_spool
from .turns import whole
from .verdicts import Verdicts


def learn_whole(rows: Rows, verdicts: Verdicts) -> None:
    """Keep the longest exchange of each conversation in training and validation, all its turns learnt."""
    import numpy as np

    learning, conversations = verdicts.learning(), rows.numbers["conversation"]
    learnt = learning & rows.numbers["teaches"]
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.isin(conversations, conversations[learning])).tolist():
        members.setdefault(int(conversations[row]), []).append(row)
    for conversation, group in members.items():
        at = {rows.traces[row].id: row for row in group if learning[row]}
        refused = rows.refused.get(conversation, set())
        spoilt = refused.union(each for row in group for each in rows.traces[row].spoilt)
        last = {mark: {rows.traces[row].hashes[-1] for row in group if learnt[row] == mark} for mark in (True, False)}
        spoilt |= last[False] - last[True]  # what nobody may learn is not learnt as a part of something longer either
        found = whole([replace(rows.traces[row], spoilt=tuple(spoilt)) for row in at.values()])
        for identity, learn in found.learn.items():
            verdicts.whole[at[identity]] = learn == "conversation"
        for identity, reason in found.left_out.items():
            words, _, longer = reason.partition(": ")
            verdicts.leave_out([at[identity]], "turns", f"{words}:", [at[longer]])


def decontaminate(settings: Decontaminate, redact: Redact, work: Work, rows: Rows, verdicts: Verdicts) -> None:
    """Leave out of training and validation what stands in an evaluation file (both without personal data)."""
    if not settings.files:
        return
    learning = verdicts.learning()
    hits = work.runtime.map(_contaminated, (work.scratch, settings, redact), rows.blocks)
    for start, found in zip(rows.starts, hits, strict=True):
        for at, place in found.items():
            if learning[start + at]:
                verdicts.leave_out([start + at], "decontaminate", f"stands in an evaluation file: {place}")


Exam = tuple[Path, Decontaminate, Redact]


def _contaminated(plan: Exam, block: int) -> dict[int, str]:
    """The rows of a block that stand in an evaluation file, with file and line."""
    scratch, settings, redact = plan
    if plan not in _INDEX:  # by run: the files may have changed since the last one
        redactor = redact.redactor(b"")
        _INDEX.clear()
        _INDEX[plan] = Contamination.build(settings, lambda text: comparable(redactor.text(text)))
    table = read_spool(scratch, "rows", block, ("id", "asked"))
    asked = [comparable(each) for each in table.column("asked").to_pylist()]
    hits = _INDEX[plan].hits(asked, table.column("id").to_pylist())
    return {at: place for at, place in enumerate(hits) if place is not None}


_INDEX: dict[Exam, Contamination] = {}


def write_judged(out: Path, task: Task, rule: PromptRule, work: Work, rows: Rows, verdicts: Verdicts) -> Json:
    """Preference pairs and single opinions of training and validation, written; how many, and how many not, by reason.

    Only exchanges with feedback or whose request was made more than once can show a preference.
    """
    import numpy as np

    numbers = rows.numbers
    _, inverse, counts = np.unique(numbers["request"], return_inverse=True, return_counts=True)
    telling = numbers["opinion"] | (counts[inverse] > 1)
    pairs, opinions, left_out = {}, {}, Counter[str]()
    splits: tuple[tuple[Split, int], ...] = (("train", TRAIN), ("validation", VALIDATION))
    for name, place in splits:
        found = find_preferences(
            _exchanges(work, rows, np.flatnonzero(telling & (verdicts.place == place))), task, rule
        )
        pairs[name], opinions[name] = found.pairs, found.opinions
        left_out.update(found.left_out)
    return dict(write_preferences(out, pairs, opinions)) | {"left_out": dict(left_out)}  # type: ignore[arg-type]


def _exchanges(work: Work, rows: Rows, numbers: Any) -> list[Exchange]:
    """Exchanges of rows as they were logged; turns that were made of a history are passed over."""
    import orjson

    at = rows.places(work.scratch).of(numbers)
    read = cells(work.scratch, "rows", "read_at", at)
    texts = cells(work.scratch, "read", "exchange", [(block, each) for (block, _), each in zip(at, read, strict=True)])
    ids = rows.ids.take(numbers).to_pylist() if len(numbers) else []
    found = [trusted(orjson.loads(each)) for each in texts]
    return [each for each, id in zip(found, ids, strict=True) if each.id == id]


def leave_boilerplate_out(settings: Boilerplate | None, task: Task, rows: Rows, verdicts: Verdicts) -> None:
    """Leave out answers that were given again and again to different prompts (free text only)."""
    if settings is None or task.kind != KIND:
        return
    numbers = rows.numbers
    canned = boilerplate_answers(numbers["answer"], numbers["prompt"], numbers["length"], settings)
    verdicts.leave_out(canned & verdicts.learning(), "boilerplate", "the same answer to many different prompts")


def against_poison(settings: Poisoning, task: Task, work: Work, rows: Rows, verdicts: Verdicts) -> list[Json]:
    """Apply the caps; flag sources whose labels stand out. The findings, with the sources' names."""
    import numpy as np

    learning = np.flatnonzero(verdicts.learning())
    numbers = rows.numbers[learning]
    if settings.capped():
        ids = rows.ids.take(learning).to_pylist()
        users, keys = ([str(each) if each else None for each in numbers[name].tolist()] for name in ("user", "key"))
        reasons = cap_reasons(ids, users, keys, numbers["corrected"].tolist(), settings)
        for row, reason in zip(learning.tolist(), reasons, strict=True):
            if reason is not None:
                verdicts.leave_out([row], "poisoning", reason)
    if not getattr(task, "labels", ()) or not len(learning):
        return []
    names = _names(work, rows, learning)
    shifts = label_shifts(names["sources"], names["answers"], names["corrections"], settings)
    if settings.on_flag == "drop":
        for row, reason in zip(learning.tolist(), shifts.reasons(len(learning)), strict=True):
            if reason is not None:
                verdicts.leave_out([row], "poisoning", reason)
    return shifts.findings


def _names(work: Work, rows: Rows, numbers: Any) -> Json:
    """Who said what, by name: sources of each kind, the teacher's labels, people's labels."""
    import orjson

    at = rows.places(work.scratch).of(numbers)
    metadata = [orjson.loads(each) for each in cells(work.scratch, "rows", "metadata", at)]
    corrected = rows.numbers["corrected"][numbers]
    answers = cells(work.scratch, "rows", "answer", at)
    files = dict(enumerate(dict.fromkeys(rows.files), 1))
    return {
        "sources": {
            "user": [_text(each.get("user")) for each in metadata],
            "key": [_text(each.get("key")) for each in metadata],
            "file": [files[each] for each in rows.numbers["source"][numbers].tolist()],
        },
        "answers": cells(work.scratch, "rows", "teacher_answer", at),
        "corrections": [text if mark else None for text, mark in zip(answers, corrected, strict=True)],
    }


def _text(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def spend_budget(settings: Budget, work: Work, rows: Rows, verdicts: Verdicts) -> None:
    """Keep no more training rows than the budget, chosen as it says."""
    import numpy as np

    training = np.flatnonzero(verdicts.place == TRAIN)
    if settings.rows is None or settings.rows >= len(training):
        return
    ids = rows.ids.take(training).to_pylist()
    labels = [str(each) for each in rows.numbers["answer"][training].tolist()]
    kept = choose_rows(settings, ids, labels, _signatures(work, rows, training) if settings.how == "diverse" else None)
    out = np.ones(len(training), bool)
    out[kept] = False
    verdicts.leave_out(training[out], "budget", f"over the budget of {settings.rows:,} rows ({settings.how})")


def _signatures(work: Work, rows: Rows, numbers: Any) -> Any:
    from .fingerprints import signatures

    return signatures(cells(work.scratch, "rows", "prompt", rows.places(work.scratch).of(numbers)))
