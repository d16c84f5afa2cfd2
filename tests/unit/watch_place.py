"""A small world for the watcher: captured traffic, a rollout that keeps its state in one file, a scripted training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from potstill.contract import Contract
from potstill.errors import PotstillError
from potstill.manifest import write_atomically, write_manifest
from potstill.prompt import PromptRule
from potstill.records import Example, Json
from potstill.tasks import Task, task_from
from potstill.watching.loop import Place, Watcher
from potstill.watching.profile import Profile, make_profile
from potstill.watching.rollout import Standing
from potstill.watching.settings import WatchSettings
from potstill.watching.training import Trained

WORDS = {
    "card": ["card", "chip", "plastic", "contactless"],
    "loan": ["loan", "credit", "mortgage", "instalment"],
    "pin": ["pin", "code", "digits", "passcode"],
    "fee": ["fee", "charge", "price", "commission"],
    "lost": ["lost", "stolen", "vanished", "misplaced"],
    "rate": ["rate", "exchange", "currency", "dollars"],
}
LABELS = list(WORDS)
FRAMES = ("I have a question about my {}", "what about the {} please", "my {} is not what I expected", "{} again, help")
SECRET_WORD = "xylophonist"


def text_of(at: int) -> tuple[str, str]:
    """A question and the label that follows from one of its words."""
    label = LABELS[at % len(LABELS)]
    word = WORDS[label][at // len(LABELS) % 4]
    return FRAMES[at // 24 % 4].format(word) + f" number {at:07d}", label


def task() -> Task:
    return task_from({"kind": "classification", "labels": LABELS})


def training_rows(count: int = 600) -> list[tuple[str, str]]:
    return [text_of(at) for at in range(count)]


def example(at: int) -> Example:
    text, label = text_of(at)
    messages = [{"role": "user", "content": text}]
    return Example(f"t{at}", f"t{at}", messages, messages, label, label, label)


@cache
def _profile() -> Profile:
    return make_profile([example(at) for at in range(600)], task())


def artifact_folder(folder: Path, name: str) -> Path:
    """An artifact with a contract and a training profile and no model."""
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_text(name)
    Contract(task().describe(), "", [], PromptRule().to_json(), 16, 128).write(folder)
    _profile().write(folder)
    facts = {"formats": {"gguf": {"file": "model.gguf"}}}
    write_manifest(folder, "artifact", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    return folder


class FileRollout:
    """Versions, aliases and moves in one file that is replaced whole; `point` is called around every move."""

    def __init__(self, path: Path, point: Callable[[str], None] = lambda _: None) -> None:
        self.path, self.point = path, point
        if not path.is_file():
            self._write({"aliases": {"champion": "1"}, "moves": [], "folders": {}})

    def _read(self) -> Json:
        found: Json = json.loads(self.path.read_text())
        return found

    def _write(self, state: Json) -> None:
        write_atomically(self.path, json.dumps(state).encode())

    def add(self, version: str, folder: Path) -> None:
        state = self._read()
        state["folders"][version] = str(folder)
        self._write(state)

    def standing(self) -> Standing:
        found = self._read()["aliases"]
        return Standing(found.get("champion"), found.get("previous"), found.get("challenger"))

    def artifact(self, version: str) -> str:
        digest: str = json.loads((self.folder(version) / "manifest.json").read_text())["digest"]
        return digest[:12]

    def folder(self, version: str) -> Path:
        return Path(self._read()["folders"][version])

    def canary(self, version: str | None, share: float) -> None:
        self.point("before canary")
        state = self._read()
        state["aliases"].pop("challenger", None)
        state["aliases"] |= {"challenger": version} if version else {}
        self._write(state)
        self.point("after canary")

    def promote(self, version: str, *, expect: str, why: str) -> None:
        self._move(version, expect, why)

    def rollback(self, *, expect: str, why: str) -> None:
        self._move(self._read()["aliases"]["previous"], expect, why)

    def _move(self, version: str, expect: str, why: str) -> None:
        self.point("before move")
        state = self._read()
        if state["aliases"]["champion"] != expect:
            raise PotstillError(f"found {state['aliases']['champion']}, expected {expect}")
        state["aliases"] |= {"champion": version, "previous": expect}
        state["moves"].append({"version": version, "why": why})
        self._write(state)
        self.point("after move")

    def moved(self, token: str) -> bool:
        return any(token in each["why"] for each in self._read()["moves"])

    @property
    def moves(self) -> list[str]:
        return [each["version"] for each in self._read()["moves"]]


@dataclass
class World:
    """Everything around one watcher. `trained` gives what the next training ends with; `hours` is the clock."""

    folder: Path
    settings: WatchSettings
    point: Callable[[str], None] = lambda _: None
    gate: bool = True
    hours: float = 0.0
    trainings: list[list[Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.captured = self.folder / "captured"
        self.captured.mkdir(parents=True, exist_ok=True)
        self.rollout = FileRollout(self.folder / "rollout.json", self.point)
        for version in ("1", "2", "3"):
            place = self.folder / f"artifact-{version}"
            if not place.is_dir():
                artifact_folder(place, version)
            self.rollout.add(version, place)

    def train(self, files: Sequence[Path], longest_s: float) -> Trained:
        self.point("before training")
        self.trainings.append(list(files))
        version = "2" if len(files) == 1 else "3"
        noun = {"digest": "d" * 64}
        artifact = {"digest": json.loads((self.folder / f"artifact-{version}" / "manifest.json").read_text())["digest"]}
        told: Json = {"version": {"version": version}, "artifact": artifact, "dataset": noun, "adapter": noun,
                      "report": noun, "gate": {"passed": self.gate}}  # fmt: skip
        self.point("after training")
        return Trained(0 if self.gate else 3, told)

    def watcher(self) -> Watcher:
        place = Place(self.folder / "watch", self.captured, training_rows)
        made = Watcher(task(), self.settings, place, self.rollout, self.train, lambda: self.now)
        append = made.journal.append

        def pointed(*args: object, **more: object) -> object:
            self.point("before entry")
            entry = append(*args, **more)  # type: ignore[arg-type]
            self.point("after entry")
            return entry

        made.journal.append = pointed  # type: ignore[assignment,method-assign]
        return made

    @property
    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(hours=self.hours)

    def answer(
        self, count: int, version: str, *, right: float = 0.9, key: str | None = None, flip: bool = False,
        opinions: bool = True,
    ) -> None:  # fmt: skip
        """`count` answers of a version, the given share right, each judged by a correction of one of twenty keys."""
        artifact, name = self.rollout.artifact(version), f"{version}-{os.urandom(4).hex()}"
        rows, feedback = [], []
        for at in range(count):
            text, label = text_of(24_000 + at * 7 + int(version))  # nothing that was trained on
            wrong = LABELS[(LABELS.index(label) + 2) % len(LABELS)]
            said = label if (at * 37 % 100) < right * 100 else wrong
            wanted = LABELS[(LABELS.index(label) + 3) % len(LABELS)] if flip else label
            identity, time = f"{name}-{at}", self.now.isoformat(timespec="milliseconds")
            rows.append(exchange(identity, time, text, said, artifact))
            opinion = {"kind": "correction", "name": "", "value": wanted, "time": time, "by": "somebody"}
            feedback.append({"id": identity, "feedback": opinion, "key": key or f"key-{at % 20}"})
        _append(self.captured / f"exchanges-{name}.jsonl", rows)
        if opinions:
            _append(self.captured / f"feedback-{name}.jsonl", feedback)


def exchange(identity: str, time: str, text: str, said: str, artifact: str) -> Json:
    answer = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    metadata = {"artifact": artifact, "answered_by": "engine", "key": None, "user": None}
    request = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"id": identity, "time": time, "request": request, "response": {"choices": [answer]}, "metadata": metadata}


def _append(path: Path, rows: Sequence[Json]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
