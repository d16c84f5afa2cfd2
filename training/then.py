"""The second phase: what people preferred (DPO) or wanted (KTO), learnt from where the answers left off.

    train:
      learning_rate: 5.0e-4
      then: {objective: dpo, beta: 0.1, learning_rate: 5.0e-5}

Both phases are the same loop with another objective. The first one's weights are kept when it ends, as a checkpoint of
their own: a run that is killed in the second phase goes on there, and the reference is those weights either way.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from potstill.dataset import read_opinions, read_preferences
from potstill.errors import NothingLearned
from potstill.intervals import wilson
from potstill.progress import say
from potstill.recipe import Section
from potstill.records import Json

from . import checkpoints
from .packing import Unit
from .watch import first_and_last
from .weights import put_weights, trained_weights

if TYPE_CHECKING:
    from .loop import Plan
    from .objectives import Objective
    from .run import Settings
    from .scoring import Score

FINISHED = "finished"  # the first phase's weights, among its checkpoints
LOG = "then_log.jsonl"
FLAT_SHARE = 0.02  # a preference loss that falls by less than this share has taught nothing
ENOUGH_HELD_OUT = 20  # held-out pairs or answers from which their loss is worth more than the training rows'
OWN = {"dpo": {"loss", "label_smoothing", "sft_weight"}, "kto": {"desirable_weight", "undesirable_weight"}}


class Then(Section):
    """Key `train.then`: a second phase. What it does not say (schedule, window, evaluations) is as in the first.

    `dpo`: `loss`, `label_smoothing` (share of pairs taken to be the wrong way round), `sft_weight` (adds the chosen
    answer's cross-entropy). `kto`: weights of wanted and unwanted answers; without them both kinds weigh the same.
    """

    objective: Literal["dpo", "kto"]
    beta: Annotated[float, Field(gt=0, le=10)] = 0.1
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    epochs: Annotated[float, Field(gt=0, le=100)] = 1.0
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_tokens: Annotated[int, Field(ge=64)] | None = None
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    sft_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    desirable_weight: Annotated[float, Field(gt=0)] | None = None
    undesirable_weight: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _of_one_objective(self) -> Then:
        other = "kto" if self.objective == "dpo" else "dpo"
        foreign = sorted(OWN[other] & self.model_fields_set)
        if foreign:
            raise ValueError(f"{', '.join(foreign)}: of objective {other}, found objective {self.objective}")
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing: of loss sigmoid, found loss ipo")
        if (self.desirable_weight is None) != (self.undesirable_weight is None):
            raise ValueError("desirable_weight, undesirable_weight: give both or neither")
        return self


@dataclass(frozen=True, slots=True)
class Judged:
    """What the second phase learns from and is watched on, with what was left out of each by reason."""

    objective: Objective
    units: list[Unit]
    held: list[Unit]
    left_out: Json = field(default_factory=dict)
    stranger_tokens: int = 0  # of the rows that KTO asks the model about at every step, in an epoch
    held_stranger_tokens: int = 0

    @property
    def reference_tokens(self) -> int:
        """Tokens of all rows that the reference is asked about, once."""
        rows = sum(unit.tokens for unit in (*self.units, *self.held))
        return rows + self.stranger_tokens + self.held_stranger_tokens

    @property
    def facts(self) -> Json:
        return {"train": len(self.units), "validation": len(self.held), "left_out": self.left_out}


def read_judged(then: Then, tokenizer: Any, dataset: Path, window: int, seed: int) -> Judged:
    """The dataset's preferences as units, training and validation apart; raises NothingLearned where there are none."""
    found = _pairs(then, tokenizer, dataset, window) if then.objective == "dpo" else None
    judged = found if found is not None else _opinions(then, tokenizer, dataset, window, seed)
    if not judged.units:
        what = "preferences.parquet" if then.objective == "dpo" else "opinions.parquet"
        raise NothingLearned(
            f"train.then: {dataset / what} has nothing to learn for {then.objective} "
            f"(left out: {judged.left_out.get('train') or 'nothing'}); it needs feedback in the log and "
            "distill.preferences: true"
        )
    return judged


def _pairs(then: Then, tokenizer: Any, dataset: Path, window: int) -> Judged:
    from .objectives.judged_rows import pair_units
    from .objectives.preferences import PreferredAnswers

    train, held = (
        pair_units(tokenizer, read_preferences(dataset, "train"), window),
        pair_units(tokenizer, read_preferences(dataset, "validation"), window),
    )
    objective = PreferredAnswers(
        beta=then.beta, loss=then.loss, label_smoothing=then.label_smoothing, sft_weight=then.sft_weight
    )
    return Judged(objective, train.units, held.units, _reasons(train.left_out, held.left_out))


def _opinions(then: Then, tokenizer: Any, dataset: Path, window: int, seed: int) -> Judged:
    from .objectives.judged_rows import opinion_units
    from .objectives.kto import WantedAnswers, balanced_weights

    train, held = (
        opinion_units(tokenizer, read_opinions(dataset, "train"), window, seed),
        opinion_units(tokenizer, read_opinions(dataset, "validation"), window, seed),
    )
    wanted = sum(train.desirable.values())
    weights = balanced_weights(wanted, len(train.units) - wanted)
    if then.desirable_weight is not None and then.undesirable_weight is not None:
        weights = (then.desirable_weight, then.undesirable_weight)
    objective = WantedAnswers(
        train.desirable | held.desirable, train.strangers | held.strangers, beta=then.beta, weights=weights
    )
    strangers = [sum(len(row.token_ids) for row in each.strangers.values()) for each in (train, held)]
    return Judged(objective, train.units, held.units, _reasons(train.left_out, held.left_out), *strangers)


def _reasons(train: Counter[str], held: Counter[str]) -> Json:
    return {"train": dict(train), "validation": dict(held)}


def keep_finished(checkpoints_of_first: Path, model: Any, figures: Json) -> None:
    """Keep the first phase's weights and figures; a full disk costs the time to find them again, not the run."""
    try:
        checkpoints.write_checkpoint(checkpoints_of_first, FINISHED, trained_weights(model), {"figures": figures})
    except OSError as fault:
        say(f"the end of the first phase is not kept: {fault}; training goes on")


def take_finished(checkpoints_of_first: Path, model: Any) -> Json | None:
    """Put a finished first phase's weights into the model and give its figures; None where it has not finished."""
    if not (checkpoints_of_first / FINISHED).is_dir():
        return None
    try:
        tensors, state = checkpoints.read_checkpoint(checkpoints_of_first / FINISHED)
    except ValueError as fault:
        say(f"the end of the first phase is refused ({fault}); it is found again from its last checkpoint")
        return None
    put_weights(model, tensors)
    figures: Json = state["figures"]
    return figures


def learn_judged(
    then: Then,
    judged: Judged,
    model: Any,
    plan: Plan,
    out: Path,
    settings: Settings,
    score: Callable[[], Score | None] = lambda: None,
    live: Callable[[Json], None] | None = None,
) -> Json:
    """Train the model on from where it stands; returns the phase's figures. Its checkpoints stand below the first's.

    Raises NothingLearned when the preference loss stays where it began.
    """
    import torch

    from . import processes
    from .fit import THEN_PLOT, watch_of
    from .loop import train
    from .packing import Stream

    torch.manual_seed(settings.seed)  # the same dropout whichever process the first phase ran in
    tokens = then.batch_tokens or settings.batch_tokens
    stream = Stream(judged.units, seed=settings.seed, step_tokens=tokens, epochs=then.epochs, max_steps=then.max_steps)
    if not judged.held:
        say(f"then {then.objective}: no held-out preferences: the last weights are taken, whatever the task score")
    rows = f"{len(judged.units):,} for training, {len(judged.held):,} held out"
    say(f"then {then.objective}: {rows}, {stream.steps:,} steps")
    watch = watch_of(model, stream, out / LOG, out / THEN_PLOT, live)
    done = train(model, judged.objective, stream, judged.held, plan, watch, out / "checkpoints" / "then", score)
    if done.best_step == 0:
        say(f"then {then.objective}: no evaluation was better than where it began: the first phase's weights are kept")
    watch.redraw()
    if not processes.first():
        return {}
    lines = [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
    return {
        "objective": then.objective,
        **judged.facts,
        **watch.figures(),
        **refuse_nothing_preferred(lines, len(judged.held), done.best_step),
        "best_checkpoint_step": done.best_step,
        "stopped_early": done.stopped,
    }


def refuse_nothing_preferred(lines: list[Json], held: int, chosen: int) -> Json:
    """What was learnt of the preferences, from the log's lines; raises NothingLearned where it is nothing.

    DPO begins at ln 2 (IPO at 1 / (2 beta)^2, KTO at half its weights): only a fall from there counts, not that of the
    cross-entropy that `sft_weight` adds. On held-out rows where they are enough, else on training rows, where chance
    is allowed for and a fall on few held-out rows counts. `chosen` is the step whose weights are taken: its accuracy is
    what is reported.
    """
    steps = [each for each in lines if "preference_loss" in each]
    evaluated = [each for each in lines if "eval_preference_loss" in each]
    if not any(each["grad_norm"] for each in steps):
        raise NothingLearned("train.then: every gradient was zero: the adapter is not connected to the loss")
    first, last, chance = first_and_last([each["preference_loss"] for each in steps])
    where, end = "training rows", "the end"
    if len(evaluated) > 1:
        before, best = evaluated[0]["eval_preference_loss"], min(e["eval_preference_loss"] for e in evaluated[1:])
        if held >= ENOUGH_HELD_OUT or (_flat(first, last) and not _flat(before, best)):
            first, last, chance, where, end = before, best, 0.0, f"{held} held-out rows", "best"
    if _flat(first, last):
        told = f"their loss on {where} was {first:.4f} at the start and {last:.4f} at {end}"
        if first - last + chance < FLAT_SHARE * first:
            raise NothingLearned(
                f"nothing learned from preferences: {told}; raise train.then.learning_rate or train.then.epochs, or "
                "leave train.then out"
            )
        say(f"preferences: {told}: of different rows, and too few steps to tell; evaluate will")
    return {"preference_loss_first": first, "preference_loss_best": last, "preference_loss_on": where} | _accuracy(
        [each for each in evaluated if each["step"] == chosen], held
    )


def _flat(first: float, last: float) -> bool:
    return not last < first * (1 - FLAT_SHARE)


def _accuracy(evaluated: list[Json], held: int) -> Json:
    """Share of held-out rows that are ranked rightly at an evaluation, with Wilson's interval."""
    if not evaluated:
        return {}
    share = evaluated[-1]["eval_reward_accuracy"]
    low, high = wilson(share * held, held)
    return {"reward_accuracy": share, "reward_accuracy_low": low, "reward_accuracy_high": high}
