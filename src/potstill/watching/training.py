"""A training for the watcher: the recipe's own run, gate and all, in a process of its own, over old and new traffic."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from potstill.errors import GateRefused
from potstill.recipe import Recipe
from potstill.records import Json

STOPPED = -1


@dataclass(frozen=True, slots=True)
class Trained:
    """How a run ended: `code` as `potstill run` gives it (STOPPED: past its time), and what it told."""

    code: int
    told: Json

    @property
    def gate_refused(self) -> bool:
        return self.code == GateRefused.exit_code

    @property
    def fault(self) -> str | None:
        if self.code in (0, GateRefused.exit_code) and "version" in self.told:
            return None
        if self.code == STOPPED:
            return "stopped: it ran past watch.longest_train_h"
        return str(self.told.get("message") or f"potstill run ended with code {self.code}")


class Train(Protocol):
    """Trains on the recipe's own sources and these files besides; may be called again for the same files."""

    def __call__(self, files: Sequence[Path], longest_s: float) -> Trained: ...


class RunTraining:
    """`potstill run RECIPE` with further sources; finished stages of a run that was cut off are not done again."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def __call__(self, files: Sequence[Path], longest_s: float) -> Trained:
        from potstill.sweeping.processes import run_stage, wait_until_free

        wait_until_free(self._recipe.shared.work_dir)
        deadline = time.monotonic() + longest_s
        ended = run_stage(self._words(files), lambda: time.monotonic() > deadline)
        return Trained(STOPPED if ended.stopped else ended.code, ended.told)

    def _words(self, files: Sequence[Path]) -> list[str]:
        first = len(self._recipe.sections["distill"].model_dump()["sources"])
        added = [
            f"distill.sources.{first + at}={json.dumps({'path': str(each), 'format': 'openai_pairs'})}"
            for at, each in enumerate(files)
        ]
        return ["run", str(self._recipe.path), *self._recipe.overrides, *added]
