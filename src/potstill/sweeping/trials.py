"""One trial: `potstill train` with a few overrides, in its ordinary folder, and the figures read from there."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from potstill.errors import PotstillError, RecipeError
from potstill.manifest import Manifest, read_manifest
from potstill.pipeline import Plan, plan_stage
from potstill.progress import say
from potstill.recipe import Recipe
from potstill.records import Json

from .processes import run_stage, wait_until_free
from .proposals import Spaces, hopeless
from .rows import Metric, Row
from .spaces import overrides, settings_of, with_values


@dataclass(frozen=True)
class Trials:
    """Runs the trials of one sweep on one dataset; called with a running row it gives that row ended."""

    recipe: Recipe
    sections: Mapping[str, type[BaseModel]]
    train: Any  # the run module of the stage
    dataset: Manifest
    validation_rows: int

    @property
    def spaces(self) -> Spaces:
        return settings_of(self.recipe).keys

    @property
    def metric(self) -> Metric:
        return settings_of(self.recipe).metric

    @property
    def log_name(self) -> str:
        """The log of the phase whose best weights the adapter is: the second one where there is one."""
        two_phases = getattr(self.recipe.sections["train"], "then", None) is not None
        return "then_log.jsonl" if two_phases else "trainer_log.jsonl"

    def plan(self, recipe: Recipe) -> Plan:
        """Where training with these settings stands."""
        return plan_stage(recipe, "train", self.train, {"dataset": self.dataset})

    def __call__(self, row: Row, before: Sequence[Row]) -> Row:
        try:
            plan = self.plan(with_values(self.recipe, self.sections, row.values))
        except RecipeError as fault:  # extremes fit one by one; these values do not go together
            return replace(row, state="nothing learned", reason="; ".join(fault.faults))
        row = replace(row, folder=plan.folder.name)
        if plan.done:
            say(f"trial {row.number}: done before ({plan.folder.name})")
        elif (ended := self._train(row, plan, before)) is not None:
            return ended
        return self._measured(row, plan.folder)

    def _train(self, row: Row, plan: Plan, before: Sequence[Row]) -> Row | None:
        """Train in a process of its own; the row where that ended without an adapter, else None."""
        log = plan.folder / self.log_name
        others = [each for each in before if each.state != "failed"]
        prunes = settings_of(self.recipe).prune

        def give_up() -> bool:
            return prunes and hopeless(curve(log, self.metric), self.spaces, others, self.metric)

        wait_until_free(self.recipe.shared.work_dir)
        words = ["train", str(self.recipe.path), *self.recipe.overrides, *overrides(row.values), "--no-track"]
        ended = run_stage(words, give_up)
        if ended.code == 0:  # an adapter that was finished before it could be given up counts
            self._refuse_other(plan, ended.told)
            return None
        row = replace(row, curve=curve(log, self.metric))
        if ended.stopped:
            at = f"evaluation {len(row.curve) - 1}, {self.metric} {row.curve[-1]:.4f}"
            return replace(row, state="pruned", reason=f"behind three quarters of the trials before it at {at}")
        return replace(row, **judged(ended.code, ended.told, row.number))

    def _refuse_other(self, plan: Plan, told: Json) -> None:
        made = told.get("adapter", {}).get("path")
        if made != str(plan.folder):
            raise PotstillError(
                f"training made {made}, expected {plan.folder}: the recipe or an input changed while the sweep ran; "
                "start the sweep again"
            )

    def _measured(self, row: Row, folder: Path) -> Row:
        manifest = read_manifest(folder, "adapter", verify=False)
        log = folder / self.log_name
        figures = kept_figures(evaluations(log), manifest.facts["training"])
        if figures[self.metric] is None:
            raise PotstillError(f"{folder}: no validation {self.metric} of its adapter; the sweep cannot compare it")
        wanted = getattr(self.recipe.sections["train"], "score_rows", self.validation_rows)
        wall_s = manifest.facts.get("wall_s")
        return replace(
            row,
            state="done",
            **figures,
            rows=min(wanted, self.validation_rows),
            minutes=None if wall_s is None else round(wall_s / 60, 2),
            curve=curve(log, self.metric),
        )


def judged(code: int, told: Json, number: int) -> Json:
    """State and reason of a trial whose process ended with a fault; raises when the fault is not the trial's own."""
    if code in (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise KeyboardInterrupt  # somebody stopped the trial's process: the sweep stops too, and can go on later
    if told.get("error") == "NothingLearned":
        return {"state": "nothing learned", "reason": told["message"]}
    if "error" in told and not told.get("crash"):
        raise PotstillError(f"trial {number}: {told['message']}")
    if code == -signal.SIGKILL:
        return {"state": "failed", "reason": "killed (signal 9); most often the system ran out of memory"}
    found = f"{told['error']}: {told['message']}" if "error" in told else f"ended with code {code} and no word"
    return {"state": "failed", "reason": found[:500]}


def kept_figures(evaluated: Sequence[Json], training: Json) -> Json:
    """Score with its interval and loss of the adapter that was kept, and tokens/s.

    `evaluated` is the trainer log's evaluations, `training` the facts of that name in the adapter's manifest, which
    say which step of the last phase was kept.
    """
    step = training.get("then", training)["best_checkpoint_step"]
    kept = next((each for each in evaluated if each["step"] == step), {})
    return {
        "score": kept.get("eval_score"),
        "low": kept.get("eval_score_low"),
        "high": kept.get("eval_score_high"),
        "loss": kept.get("eval_loss"),
        "tokens_per_second": training.get("tokens_per_second"),
    }


def evaluations(log: Path) -> list[Json]:
    """The evaluations of a trainer log in their order, also of one that is being written."""
    found: dict[int, Json] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # the last line, half written
            continue
        if "eval_loss" in entry:
            found[int(entry["step"])] = entry
    return [found[step] for step in sorted(found)]


def curve(log: Path, metric: Metric) -> tuple[float, ...]:
    """The metric at each evaluation, the one before training first."""
    return tuple(each[f"eval_{metric}"] for each in evaluations(log) if f"eval_{metric}" in each)
