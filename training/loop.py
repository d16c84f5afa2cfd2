"""The training loop, top to bottom: a step, its evaluation, its checkpoint.

Everything that a step depends on is in the checkpoint or a function of the step's number: the weights and moments, the
random states (the first process's; the others' are drawn anew at every step), and which rows it learns from
(packing.py). A run that is killed anywhere goes on with the same rows and, on a CPU, the same bits.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from potstill.progress import say
from potstill.records import Json

from . import checkpoints, processes
from .attention import rows_apart
from .batch import Batch, inner_of, shares, token_scores
from .objectives import Generates, Objective
from .optimizer import MasterAdamW, Schedule, learning_rate
from .packing import Stream, Unit, units_digest
from .scoring import Score
from .watch import Watch, refuse_not_finite
from .weights import device_of, put_weights, trained_weights


@dataclass(frozen=True, slots=True)
class Plan:
    """How a phase of training goes on. Lengths in tokens; `patience` in evaluations.

    `evals` is how often it is evaluated beside the evaluation before its first step. `keep_start`: the weights that the
    phase begins with may be the ones that it leaves (a second phase's are the first one's student; the first one's are
    the untrained base, which is compared with and never kept), and nothing that scores lower takes their place.
    """

    learning_rate: float
    schedule: Schedule
    warmup_share: float
    weight_decay: float
    max_grad_norm: float
    micro_tokens: int
    evals: int
    patience: int | None
    checkpoint_minutes: float
    checkpoint_steps: int | None
    paged_8bit: bool = False
    keep_start: bool = False


@dataclass(slots=True)
class Progressed:
    """What a checkpoint remembers beside weights and random states.

    `best_loss` is that of the best evaluation, None before the first; `best_score` (0 where nothing is scored) and
    `best_parts` (the scored rows') are those of the highest score of evaluations that were the best in their turn;
    `stale`: evaluations since the best one; `evaluated`: the step of the last one.
    """

    step: int = 0
    best_score: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0
    stopped: bool = False
    evaluated: int = -1
    best_parts: list[dict[str, float]] = field(default_factory=list)

    def beaten_by(self, found: Score | None, loss: float, *, strictly: bool) -> bool:
        """Whether an evaluation is better than the best so far: by score beyond chance, else by a lower loss.

        `strictly`: by any higher score, and by a lower loss where the score is the same.
        """
        if self.best_score is None or self.best_loss is None:
            return True
        value = found.value if found is not None else 0.0
        ahead = (value > self.best_score) - (value < self.best_score)
        if not strictly:
            ahead = found.beyond_chance(self.best_parts) if found is not None else 0
        return ahead > 0 or (ahead == 0 and loss < self.best_loss)


def train(
    model: Any,
    objective: Objective,
    stream: Stream,
    held: Sequence[Unit],
    plan: Plan,
    watch: Watch,
    folder: Path,
    score: Callable[[], Score | None] = lambda: None,
) -> Progressed:
    """Train the model's free parameters and leave the best ones in it; `folder` holds the checkpoints.

    Raises NothingLearned on a loss or gradient that is no number, PotstillError while another process trains in the
    folder, and KeyboardInterrupt(signal number), after a checkpoint, when the process is asked to end.
    """
    own = folder if processes.first() else folder / f"process-{processes.rank()}"
    with checkpoints.locked(own):
        model.train()
        take_weights_from_first(model)
        with torch.random.fork_rng():  # else a resumed run, which finds it prepared, would draw other numbers
            objective.prepare(model, [*stream.units, *held], own)  # the model stands where the phase began
        optimizer = MasterAdamW(
            model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, paged_8bit=plan.paged_8bit
        )
        run = identity(objective, stream, held, plan, optimizer)
        done = Progressed()
        if processes.first():
            done = resume(folder, optimizer, watch, run, stream.seed)
        done = begin_together(optimizer, done)
        best = checkpoints.Best(folder)
        evaluations = evaluated_at(stream.steps, plan.evals)
        saved, saved_step = time.monotonic(), done.step
        with asked_to_end() as ending:
            while True:
                asked = processes.agreed(ending[0] if ending else 0)
                due = done.step in evaluations and done.evaluated < done.step
                if due and not asked:
                    evaluate(model, objective, held, plan, watch, score, done, best)
                often = plan.checkpoint_steps is not None and done.step % plan.checkpoint_steps == 0
                late = time.monotonic() - saved >= 60 * plan.checkpoint_minutes
                if due or (done.step > saved_step and (often or late or asked)):
                    save(folder, optimizer, watch, best, done, run)
                    saved, saved_step = time.monotonic(), done.step
                if asked:
                    say(f"asked to end: stopped at step {done.step}; the same command goes on from there")
                    raise KeyboardInterrupt(asked)
                if done.stopped or done.step == stream.steps:
                    if asked := processes.agreed(ending[0] if ending else 0):  # during the last evaluation
                        raise KeyboardInterrupt(asked)
                    break
                learn(model, objective, stream, plan, watch, optimizer, done)
        take_best(best, model, done)
    return done


def evaluated_at(steps: int, evals: int) -> frozenset[int]:
    """The steps after which a run is evaluated: 0, and `evals` others evenly spread, the last at the end.

    Fewer where there are fewer steps.
    """
    return frozenset({0} | {(2 * at * steps + evals) // (2 * evals) for at in range(1, evals + 1)})


def learn(
    model: Any, objective: Objective, stream: Stream, plan: Plan, watch: Watch, optimizer: MasterAdamW, done: Progressed
) -> None:
    """One step: the gradient of its units, and the update from it."""
    watch.begin(done.step)
    processes.draw_apart(stream.seed, done.step)
    units = stream.step(done.step)
    if isinstance(objective, Generates):
        units = processes.agreed(objective.generate(model, units, done.step))
    loss, extra = gradient(model, objective, units, plan.micro_tokens)
    rate = learning_rate(
        done.step, stream.steps, peak=plan.learning_rate, warmup_share=plan.warmup_share, schedule=plan.schedule
    )
    processes.add_up(optimizer.gather())
    norm = optimizer.step(rate, plan.max_grad_norm)
    done.step += 1
    watch.step(done.step, units, {"loss": loss, "grad_norm": norm, "learning_rate": rate} | extra)


def gradient(
    model: Any, objective: Objective, units: Sequence[Unit], micro_tokens: int
) -> tuple[float, dict[str, float]]:
    """Leave a step's gradient in the parameters; returns its loss and the means of further figures."""
    objective.begin(model, units)
    normaliser = objective.normaliser(units)
    total, sums = 0.0, dict[str, tuple[float, float]]()
    for micro, counts in processes.rounds(units, micro_tokens):
        batch = Batch.of(micro, device_of(model), shares(model))
        # around the backward pass too: recomputed activations attend once more
        with rows_apart(inner_of(model), batch.row_lengths, batch.places):
            scores, hits = token_scores(model, batch, objective.scores)
            loss = objective.loss(scores, batch) / normaliser * counts
            loss.backward()  # type: ignore[no-untyped-call]
        if counts:
            total += float(loss.detach())
            figures: dict[str, tuple[float, float]] = {"token_accuracy": (hits, scores.numel())}
            if shares(model):
                figures["computed_share"] = batch.computed_share
            _add(sums, figures | objective.figures(scores.detach(), batch))
    return _over_processes(total, sums)


@torch.no_grad()
def held_out_loss(
    model: Any, objective: Objective, held: Sequence[Unit], micro_tokens: int
) -> tuple[float, dict[str, float]]:
    """The objective's loss over the held-out units, and the means of its further figures."""
    total, sums = 0.0, dict[str, tuple[float, float]]()
    was_training = model.training
    model.eval()
    objective.begin(model, held)
    for micro, counts in processes.rounds(held, micro_tokens):
        batch = Batch.of(micro, device_of(model), shares(model))
        scores, hits = token_scores(model, batch, objective.scores)
        if counts:
            total += float(objective.loss(scores, batch))
            _add(sums, {"token_accuracy": (hits, scores.numel())} | objective.figures(scores, batch))
    model.train(was_training)
    total, means = _over_processes(total, sums)
    return total / objective.normaliser(held), means


def _over_processes(total: float, sums: dict[str, tuple[float, float]]) -> tuple[float, dict[str, float]]:
    """The sum of all processes' totals, and the means of all their figures."""
    parts = processes.gathered((total, sums))
    added = dict[str, tuple[float, float]]()
    for _, figures in parts:
        _add(added, figures)
    return sum(part for part, _ in parts), {name: above / max(below, 1e-9) for name, (above, below) in added.items()}


def _add(sums: dict[str, tuple[float, float]], more: dict[str, tuple[float, float]]) -> None:
    for name, (above, below) in more.items():
        old = sums.get(name, (0.0, 0.0))
        sums[name] = (old[0] + above, old[1] + below)


def evaluate(
    model: Any,
    objective: Objective,
    held: Sequence[Unit],
    plan: Plan,
    watch: Watch,
    score: Callable[[], Score | None],
    done: Progressed,
    best: checkpoints.Best,
) -> None:
    """Held-out loss and task score; keeps the weights where they are the best so far, counts patience otherwise."""
    done.evaluated = done.step
    if not held:
        return
    loss, means = held_out_loss(model, objective, held, plan.micro_tokens)
    refuse_not_finite({"eval_loss": loss, "step": done.step})
    found = processes.agreed(score())
    values: Json = {"eval_loss": loss} | {f"eval_{name}": value for name, value in means.items()}
    if found is not None:
        values |= {"eval_score": found.value, "eval_score_low": found.low, "eval_score_high": found.high}
    watch.evaluated(done.step, {name: value for name, value in values.items() if value is not None})
    if done.step == 0 and not plan.keep_start:
        return
    if done.beaten_by(found, loss, strictly=plan.keep_start):
        if processes.first():
            best.keep(done.step, trained_weights(model))
        value = found.value if found is not None else 0.0
        if done.best_score is None or value >= done.best_score:  # else chance by chance it could sink
            done.best_score = value
            done.best_parts = [dict(each) for each in found.parts] if found is not None else []
        done.best_loss, done.best_step, done.stale = loss, done.step, 0
    else:
        done.stale += 1
        if plan.patience is not None and done.stale >= plan.patience:
            say(f"stopping at step {done.step}: {done.stale} evaluations, none as good as at {done.best_step}")
            done.stopped = True


def identity(
    objective: Objective, stream: Stream, held: Sequence[Unit], plan: Plan, optimizer: MasterAdamW
) -> dict[str, str]:
    """What must be the same for a checkpoint to be gone on from: everything that decides what is learnt from what."""
    settings = asdict(plan)
    for free in ("checkpoint_minutes", "checkpoint_steps"):
        settings.pop(free)
    return {f"train.{name}": str(value) for name, value in settings.items()} | {
        "rows and their order": stream.digest,
        "validation rows": units_digest(held),
        "objective": objective.name,
        "what is remembered": ", ".join(each.name for each in fields(Progressed)),
        "trained weights": str([list(each.shape) for each in optimizer.parameters]),
    }


def save(
    folder: Path,
    optimizer: MasterAdamW,
    watch: Watch,
    best: checkpoints.Best,
    done: Progressed,
    run: dict[str, str],
) -> None:
    """A checkpoint of everything that the next step depends on, after the log and the best weights that belong to it.

    A full disk costs the checkpoint, not the run: training goes on, and the next one may succeed.
    """
    if not processes.first():
        return
    state = {"progressed": asdict(done), "random": checkpoints.random_states(), "run": run}
    try:
        watch.settle()
        best.settle()
        checkpoints.save_step(folder, done.step, optimizer.state(), state)
    except OSError as fault:
        say(f"no checkpoint at step {done.step}: {fault}; training goes on, the one before is kept")


def resume(folder: Path, optimizer: MasterAdamW, watch: Watch, run: dict[str, str], seed: int) -> Progressed:
    """Take up the newest whole checkpoint of this run, or begin."""
    found = checkpoints.newest(folder, run)
    if found is None:
        torch.manual_seed(seed)
        watch.recall(None)
        return Progressed()
    path, tensors, state = found
    optimizer.load_state(tensors)
    checkpoints.restore_random_states(state["random"])
    done = Progressed(**state["progressed"])
    watch.recall(done.step, done.evaluated)
    say(f"going on from {path.name}")
    return done


def begin_together(optimizer: MasterAdamW, done: Progressed) -> Progressed:
    """Put every process where the first one stands: weights and moments; returns its progress."""
    if processes.count() == 1:
        return done
    state = {name: each.cpu() for name, each in optimizer.state().items()}
    done, state = processes.agreed((done, state))
    if not processes.first():
        optimizer.load_state(state)
    return done


@torch.no_grad()
def take_weights_from_first(model: Any) -> None:
    """Give every process the first one's trained weights: they alone may come from a checkpoint."""
    for parameter in trained_weights(model).values():
        processes.take_from_first(parameter.data)


def take_best(best: checkpoints.Best, model: Any, done: Progressed) -> None:
    """Put the best weights into the model (the last ones stay when there were no held-out rows to choose by)."""
    if done.best_loss is None:
        done.best_step = done.step
    if done.best_step == done.step or not processes.first():
        return  # the others are given them at the beginning of what follows
    try:
        tensors = best.read(done.best_step)
    except ValueError as fault:
        say(f"the best weights, of step {done.best_step}, are refused ({fault}); keeping the last, of step {done.step}")
        done.best_step = done.step
        return
    put_weights(model, tensors)


@contextmanager
def asked_to_end() -> Iterator[list[int]]:
    """A list that holds the signal once the process is asked to end (SIGTERM, Ctrl-C); a second one ends it at once."""
    caught: list[int] = []
    previous: dict[int, Any] = {}

    def take(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt(number)
        caught.append(number)
        os.write(2, b"asked to end: finishing what is under way, then a checkpoint; asked again: at once\n")

    try:
        for each in (signal.SIGTERM, signal.SIGINT):
            previous[each] = signal.signal(each, take)
    except ValueError:
        pass  # not the main thread: whoever started it decides
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
