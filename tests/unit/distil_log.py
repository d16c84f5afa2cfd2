"""Whole runs of `distill` on small made-up logs: any task, any number of worker processes, conversations of turns."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from distillation.run import Settings, main
from distillation.runtime import LocalRuntime
from potstill.records import Example, Json, Message, canonical_json
from potstill.stage import Shared

from .mail_log import LABELS, SYSTEM, exchange, rejections_of, rows_of, said, settings_for, write_log

GENERATION: Json = {"kind": "generation"}


@dataclass
class Made:
    """A finished dataset: its facts, its folder, and what is in it."""

    facts: Json
    out: Path

    @property
    def rows(self) -> dict[str, list[Example]]:
        return rows_of(self.out)

    @property
    def learnt(self) -> list[Example]:
        """Training and validation."""
        rows = self.rows
        return rows["train"] + rows["validation"]

    @property
    def rejected(self) -> dict[str, tuple[str, str]]:
        """Step and reason of each rejected row by its id."""
        return {each["id"]: (each["step"], each["reason"]) for each in rejections_of(self.out)}

    @property
    def card(self) -> str:
        return (self.out / "card.md").read_text()


@dataclass
class Distil:
    """Distils logs into new folders beside each other, in this process unless there are `workers`."""

    folder: Path
    shared: Shared

    def log(self, lines: Iterable[Json | str]) -> Path:
        return write_log(self.folder / f"log{sum(1 for _ in self.folder.glob('log*'))}.jsonl", lines)

    def __call__(
        self, log: Iterable[Json | str] | Path, task: Json | None = None, workers: int = 1, **changes: object
    ) -> Made:
        path = log if isinstance(log, Path) else self.log(log)
        return self.run(settings_for(path, **changes), task, workers)

    def run(self, settings: Settings, task: Json | None = None, workers: int = 1) -> Made:
        out = self.folder / f"out{sum(1 for _ in self.folder.glob('out*'))}"
        out.mkdir()
        shared = replace(self.shared, task_definition=task or {"kind": "classification", "labels": LABELS})
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "tokenizers", None)  # as where only the core is installed
            patch.setattr("distillation.run.runtime_of", lambda kind: LocalRuntime(workers))
            return Made(main(settings, shared, {}, out), out)


def talk(at: int, turns: int, logged: Iterable[int] | None = None, **feedback: list[Json]) -> list[Json]:
    """The exchanges of one growing conversation; `logged` says which turns were, `t1` is the feedback on turn 1."""
    messages: list[Message] = [{"role": "system", "content": SYSTEM}]
    wanted = set(range(turns)) if logged is None else set(logged)
    lines = []
    for turn in range(turns):
        messages.append({"role": "user", "content": said(1000 * at + turn)})
        label = LABELS[(at + turn) % 3]
        if turn in wanted:
            line = exchange(at, label, metadata={"conversation": f"c{at}"}, feedback=feedback.get(f"t{turn}", []))
            line |= {"id": f"x{at:03d}-{turn}", "request": {"model": "large", "messages": list(messages)}}
            lines.append(line)
        messages.append({"role": "assistant", "content": label})
    return lines


def talks(numbers: Iterable[int], turns: int = 3, logged: Mapping[int, Iterable[int]] | None = None) -> list[Json]:
    return [line for at in numbers for line in talk(at, turns, (logged or {}).get(at))]


def supervised(row: Example) -> list[str]:
    """Every turn that training on the row learns: what stands before it, and it."""
    everything = [*row.full_messages, {"role": "assistant", "content": row.answer}]
    places = [at for at, each in enumerate(everything) if each["role"] == "assistant"]
    return [canonical_json(everything[: at + 1]) for at in (places if row.learn == "conversation" else places[-1:])]
