"""Watching a run: progress with tokens/s, a log line a step, and the refusal of a run that learns nothing."""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from potstill.errors import NothingLearned
from potstill.manifest import write_atomically
from potstill.progress import Progress, say
from potstill.records import Json

from .packing import Unit
from .plot import draw

FLAT_SHARE = 0.02  # a run whose loss falls by less than this share has learnt nothing worth an evaluation


def machine_figures() -> Json:
    """What this process has used so far: peak memory in bytes, processor time in seconds (all cores)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "system/peak_memory_bytes": used.ru_maxrss * 1024,  # Linux counts in KiB
        "system/cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
    }


def refuse_not_finite(values: Json) -> None:
    """Raise NothingLearned on a loss or gradient norm that is no number."""
    for name in ("loss", "grad_norm", "eval_loss"):
        value = values.get(name)
        if value is not None and not math.isfinite(value):
            raise NothingLearned(
                f"{name} is {value} at step {values.get('step')}: training has diverged; lower train.learning_rate"
            )


def rows_digest(units: Sequence[Unit]) -> str:
    """Sixteen hex digits of which rows a step learnt from, in their order."""
    return hashlib.sha256("\n".join(unit.id for unit in units).encode()).hexdigest()[:16]


class Watch:
    """Collects what happens in a phase of training; `verdict` judges the finished one.

    `log` gets one JSON object a step or evaluation, `live` the same as it happens. `flops` is what a token and a
    learnt token cost, `peak_flops` what the matrix product of all its devices gives a second. `plot` is drawn anew from
    the log at every evaluation and at the end.
    """

    def __init__(
        self,
        log: Path,
        steps: int,
        *,
        flops: tuple[float, float] = (0.0, 0.0),
        peak_flops: float = 0.0,
        live: Callable[[Json], None] | None = None,
        plot: Path | None = None,
    ) -> None:
        self.log, self.live, self.plot = log, live, plot
        self.flops, self.peak_flops = flops, peak_flops
        self.progress = Progress("train", steps, "steps")
        self.losses: list[float] = []
        self.eval_losses: list[float] = []
        self.grad_norms: list[float] = []
        self.evaluations: list[Json] = []
        self.seconds = self._started = 0.0
        self.tokens = self.learnt_tokens = 0
        self.computed_tokens = 0.0  # without those of beginnings that rows have in common
        self._unwritten = ""

    def begin(self, step: int) -> None:
        self.progress.done = step
        self._started = time.perf_counter()

    def step(self, step: int, units: Sequence[Unit], values: Json) -> None:
        """Take up a finished step: its units, loss, gradient norm, learning rate and further figures."""
        took = time.perf_counter() - self._started
        tokens = sum(unit.tokens for unit in units)
        learnt = sum(row.supervised_tokens for unit in units for row in unit.rows)
        refuse_not_finite(values | {"step": step})
        spent = {"tokens": tokens, "learnt_tokens": learnt, "seconds": round(took, 6)}
        speed = {"tokens_per_second": round(tokens / took, 1)}
        self._take({"step": step, **values, "rows": rows_digest(units), **spent, **speed})
        self.progress.advance(note=self.note())

    def evaluated(self, step: int, values: Json) -> None:
        """Take up an evaluation on held-out rows."""
        self._take({"step": step, **values})
        text = f"step {step}: validation loss {values['eval_loss']:.4f}"
        if "eval_score" in values:
            text += f", task score {values['eval_score']:.3f}"
        if "eval_score_low" in values:
            text += f" [{values['eval_score_low']:.3f}, {values['eval_score_high']:.3f}]"
        say(text)
        self.redraw()

    def redraw(self) -> None:
        """Draw the plot from the log; a disk that refuses costs the plot, and is said once."""
        if self.plot is None:
            return
        try:
            draw(self.log, self.plot)
        except OSError as fault:
            say(f"{self.plot.name} is not drawn any more: {fault}; training goes on")
            self.plot = None

    def _take(self, values: Json) -> None:
        line = values | machine_figures() | {"time": round(time.time(), 3)}
        self._unwritten += json.dumps(line) + "\n"
        try:
            self._write()
        except OSError as fault:
            say(f"{self.log.name} is behind: {fault}; its lines are held in memory")
        self._remember(values)
        if self.live is not None:
            self.live(line)

    def _write(self, *, durably: bool = False) -> None:
        """Append what is not yet in the log; raises OSError, with no part of a line left there, when refused."""
        with self.log.open("ab", buffering=0) as stream:
            size, left = stream.tell(), memoryview(self._unwritten.encode())
            try:
                while left:
                    left = left[stream.write(left) or 0 :]
                if durably:
                    os.fsync(stream.fileno())
            except OSError:
                stream.truncate(size)
                raise
        self._unwritten = ""

    def settle(self) -> None:
        """The whole log on the disk: no checkpoint may know of steps that the log has lost. Raises OSError."""
        self._write(durably=True)

    def _remember(self, values: Json) -> None:
        if "loss" in values:
            self.losses.append(values["loss"])
            self.grad_norms.append(values["grad_norm"])
            self.seconds += values.get("seconds", 0.0)
            self.tokens += values.get("tokens", 0)
            self.computed_tokens += values.get("tokens", 0) * values.get("computed_share", 1.0)
            self.learnt_tokens += values.get("learnt_tokens", 0)
        if "eval_loss" in values:
            self.eval_losses.append(values["eval_loss"])
            self.evaluations.append(values)

    def recall(self, step: int | None, evaluated: int | None = None) -> None:
        """Take up the log as far as the checkpoint that is gone on from; drop what came after it (None: everything).

        `evaluated` is the last step whose evaluation the checkpoint knows of: its own step's may come again.
        A line that a kill cut short is dropped too. Seconds and tokens go on from there: the figures are of the whole
        phase, without the steps that were lost and done again.
        """
        before = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        kept = []
        for line in before.splitlines() if step is not None else []:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            last = evaluated if "eval_loss" in values and evaluated is not None else step
            if values["step"] <= last:
                kept.append(line)
                self._remember(values)
        if len(self.losses) != (step or 0):
            say(f"{self.log.name} holds {len(self.losses)} steps of the {step} that are done: the others are lost")
        if (after := "".join(line + "\n" for line in kept)) != before:
            write_atomically(self.log, after.encode())

    def tokens_per_second(self) -> float:
        """Tokens of rows a second of training steps, evaluations and checkpoints apart; no padding is among them."""
        return self.tokens / max(self.seconds, 1e-9)

    def share_of_peak(self) -> float | None:
        """Share of all devices' own matrix product that the steps have used; None where it was not measured."""
        if not self.peak_flops or not self.seconds:
            return None
        used = self.computed_tokens * self.flops[0] + self.learnt_tokens * self.flops[1]
        return used / self.seconds / self.peak_flops

    def note(self) -> str:
        share = self.share_of_peak()
        of_peak = f" ({share:.0%} of this machine's matrix product)" if share is not None else ""
        return f"{self.tokens_per_second():,.0f} tokens/s{of_peak}, loss {self.losses[-1]:.4f}"

    def verdict(self, kept: int) -> Json:
        """The phase's figures; raises NothingLearned when the loss is flat or no gradient ever flowed.

        Raised too when the base scored so much better than the weights of step `kept` that chance does not explain it.
        """
        self.redraw()
        if self.grad_norms and max(self.grad_norms) == 0:
            raise NothingLearned("every gradient was zero: the adapter is not connected to the loss")
        chance: float | None = None
        if len(self.eval_losses) >= 2:
            first, last, what = self.eval_losses[0], min(self.eval_losses[1:]), "validation loss"
        else:
            first, last, chance = first_and_last(self.losses)
            what = "training loss"
        if not last < first * (1 - FLAT_SHARE):
            told = f"{what} {first:.4f} at the start, {last:.4f} at {'the end' if chance is not None else 'best'}"
            if chance is None or first - last + chance < FLAT_SHARE * first:
                raise NothingLearned(
                    f"nothing learned: {told}; check the answers, raise train.learning_rate or train.epochs"
                )
            say(f"{told}: of different rows, and too few steps to tell; evaluate will")
        self._compare_with_base(kept)
        return self.figures()

    def _compare_with_base(self, kept: int) -> None:
        """Raise NothingLearned when the interval of the untrained base's score lies above the student's; say less."""
        scored = {each["step"]: each for each in self.evaluations if "eval_score" in each}
        before, after = scored.get(0), scored.get(kept)
        if before is None or after is None or before["eval_score"] <= after["eval_score"]:
            return
        told = (
            f"the task score was {before['eval_score']:.3f} before training and {after['eval_score']:.3f} after it "
            f"(step {kept}), though the loss fell"
        )
        if before.get("eval_score_low", 0.0) > after.get("eval_score_high", 1.0):
            raise NothingLearned(
                f"nothing learned: {told}; lower train.learning_rate, raise train.epochs, or use the base itself"
            )
        say(f"{told}: too few rows to tell (train.score_rows); evaluate will")

    def figures(self) -> Json:
        """The phase's figures, whatever was learnt."""
        share = self.share_of_peak()
        scored = [each for each in self.evaluations if "eval_score" in each]
        return {
            "steps": len(self.losses),
            "loss_first": self.losses[0],
            "loss_last": self.losses[-1],
            "eval_losses": self.eval_losses,
            "scores": [(each["step"], each["eval_score"]) for each in scored],
            "best_score": max((each["eval_score"] for each in scored), default=None),
            "tokens_per_second": round(self.tokens_per_second(), 1),
            "computed_share": round(self.computed_tokens / max(self.tokens, 1), 3),
            "share_of_matrix_product": None if share is None else round(share, 3),
            "train_seconds": round(self.seconds, 1),
        }


def first_and_last(losses: Sequence[float]) -> tuple[float, float, float]:
    """Means of the first and of the last tenth of the steps, and what chance may have added to their difference.

    A step's loss is of its own rows: two standard errors by the spread of all steps, which is too much where they fall.
    """
    tenth = max(1, len(losses) // 10)
    first, last = statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])
    spread = statistics.stdev(losses) if len(losses) > 1 else math.inf
    return first, last, 2 * spread * math.sqrt(2 / tenth)
