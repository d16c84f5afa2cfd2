"""What of the captured traffic is new and may be learnt, written into a folder of its own that training reads.

An answer that the student gave itself teaches nothing and is left out, unless a person approved or corrected it:
models that learn their own output lose what is rare (Shumailov et al. 2024, Nature 631:755). Answers of the large
model are what it was distilled from, and are taken in.

The folder holds `exchanges-*.jsonl` as the server writes them, with the opinions that were let in, so that `distill`
reads it and `forget` finds it; and `taken.json`, ids alone, which says what was looked at and why it was left out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from potstill.feedback_join import FEEDBACK, read_feedback_line
from potstill.manifest import sha256_file, write_atomically
from potstill.records import Exchange, Feedback, Json
from potstill.tasks import Task
from potstill.watching.opinions import canonical_of, right_of
from potstill.watching.screen import NOTHING_EARLIER, Correction, Earlier, Screened, screen
from potstill.watching.settings import WatchSettings

TAKEN = "taken.json"
UNKNOWN = "(unknown)"


@dataclass(frozen=True, slots=True)
class New:
    """One exchange that says something new: the opinion that counts (None: the large model's answer) and whose it is.

    `correction` is the canonical text of what should have been answered, where somebody said so.
    """

    exchange: Exchange
    key: str
    opinion: Feedback | None
    correction: str | None

    @property
    def mark(self) -> str:
        """Tells an exchange from itself with more opinions."""
        return f"{self.exchange.id}:{len(self.exchange.feedback)}"


@dataclass(frozen=True, slots=True)
class Intake:
    """What a training would learn beyond what it had: rows by kind, and what the screen said."""

    rows: tuple[New, ...]
    screened: Screened
    looked_at: tuple[str, ...]

    @property
    def opinions(self) -> int:
        """Rows that people stand for."""
        return sum(each.opinion is not None for each in self.rows)

    def figures(self) -> Json:
        kinds = ["corrected" if each.correction else "approved" if each.opinion else "large" for each in self.rows]
        return {
            "rows": len(self.rows),
            **{kind: kinds.count(kind) for kind in ("corrected", "approved", "large")},
            "refused": len(self.screened.refused),
            "over_the_cap": len(self.screened.over),
            "refused_keys": [each for each in self.screened.keys if each["refused"]],
            "keys": len(self.screened.keys),
        }


def feedback_keys(folder: Path) -> dict[tuple[str, str | None, str], str]:
    """The key that each piece of feedback was authenticated by, by exchange, time and kind; where the server said it.

    `by` is what a client calls itself: nothing may be capped by that.
    """
    found: dict[tuple[str, str | None, str], str] = {}
    for path in sorted(folder.glob(FEEDBACK)):
        for line in path.read_bytes().splitlines():
            try:
                data = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(data, dict) and data.get("key"):
                identity, opinion = read_feedback_line(data)
                found[(identity, opinion.time, opinion.kind)] = str(data["key"])
    return found


def new_of(
    exchanges: Iterable[Exchange], task: Task, known: set[str], keys: Mapping[tuple[str, str | None, str], str],
    *, large_answers: bool,
) -> list[New]:  # fmt: skip
    """The exchanges that something can be learnt from and that no intake has looked at yet."""
    found = []
    for exchange in exchanges:
        each = _new(exchange, task, keys, large_answers=large_answers)
        if each is not None and each.mark not in known:
            found.append(each)
    return found


def _new(
    exchange: Exchange, task: Task, keys: Mapping[tuple[str, str | None, str], str], *, large_answers: bool
) -> New | None:
    answer = task.text_of(exchange.answer)
    for opinion in reversed(exchange.feedback):
        right = right_of(opinion, answer, task)
        if right is None:
            continue
        key = keys.get((exchange.id, opinion.time, opinion.kind)) or str(
            exchange.metadata.get("key") or opinion.by or exchange.metadata.get("user") or UNKNOWN
        )
        if right:
            return New(exchange, key, opinion, None) if task.parse(answer, exchange.tools).valid else None
        if opinion.kind == "correction":
            return New(exchange, key, opinion, task.canonical(task.from_gold(opinion.value).value))
        return None  # wrong, and nobody says what is right
    by_large = exchange.metadata.get("answered_by") == "large" and task.parse(answer, exchange.tools).valid
    return New(exchange, UNKNOWN, None, None) if large_answers and by_large else None


def take(
    new: Sequence[New], task: Task, training: Sequence[tuple[str, str]], settings: WatchSettings,
    earlier: Earlier = NOTHING_EARLIER,
) -> Intake:  # fmt: skip
    """The rows that pass the screen; corrections are screened, and approvals with them (who approves what is wrong
    teaches it as well)."""
    opinions = [each for each in new if each.opinion is not None]
    screened = screen([_as_correction(each, task) for each in opinions], training, settings.poison, earlier)
    left_out = screened.refused.keys() | screened.over.keys()
    rows = tuple(each for each in new if each.mark not in left_out)
    # what is over the cap may come in another time; what was refused may not
    looked_at = tuple(each.mark for each in new if each.mark not in screened.over)
    return Intake(rows, screened, looked_at)


def _as_correction(each: New, task: Task) -> Correction:
    said = canonical_of(task.text_of(each.exchange.answer), task)
    by_large = each.exchange.metadata.get("answered_by") == "large"
    return Correction(each.mark, each.key, question_of(each.exchange), each.correction or said, said,
                      said if by_large else None)  # fmt: skip


def question_of(exchange: Exchange) -> str:
    """The newest user text."""
    for message in reversed(exchange.messages):
        if message.get("role") == "user":
            return str(message.get("content") or "")
    return ""


def write_intake(folder: Path, intake: Intake) -> str:
    """Write the rows and what was looked at, whole or not at all; returns the digest of the rows."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows = partial / f"exchanges-{folder.name}.jsonl"
    with rows.open("wb") as stream:
        for each in intake.rows:
            let_in = replace(each.exchange, feedback=(each.opinion,) if each.opinion is not None else ())
            stream.write(orjson.dumps(let_in.to_json(), option=orjson.OPT_APPEND_NEWLINE))
    told = {"looked_at": list(intake.looked_at), "refused": dict(intake.screened.refused), "keys": intake.screened.keys}
    write_atomically(partial / TAKEN, json.dumps(told, ensure_ascii=False, indent=1).encode())
    digest = sha256_file(rows)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return digest


def _lists(folders: Iterable[Path]) -> Iterator[Json]:
    """What each of these intakes wrote down of what it decided."""
    for folder in folders:
        if (folder / TAKEN).is_file():
            yield json.loads((folder / TAKEN).read_text(encoding="utf-8"))


def looked_at(folders: Iterable[Path]) -> set[str]:
    """The marks of everything that these intakes have decided on."""
    return {mark for each in _lists(folders) for mark in each["looked_at"]}


def refused_earlier(folders: Iterable[Path]) -> Earlier:
    """By key, what these lists of refused corrections held of it: how many, and how many that contradicted."""
    found: dict[str, tuple[int, int]] = {}
    for line in (line for each in _lists(folders) for line in each["keys"] if line["refused"]):
        count, bad = found.get(line["key"], (0, 0))
        # lists of before these counts were written say nothing of it
        found[line["key"]] = (count + line.get("new", 0), bad + line.get("new_contradict", 0))
    return found
