"""Watching a run: progress with tokens/s, a log line a step, and the refusal of a run that learns nothing."""

from __future__ import annotations

import json
import math
import resource
import time
from pathlib import Path
from typing import Any

from potstill.errors import NothingLearned
from potstill.progress import Progress, say
from potstill.records import Json

KEPT = (
    "loss",
    "grad_norm",
    "learning_rate",
    "eval_loss",
    "eval_score",
    "mean_token_accuracy",
    "eval_mean_token_accuracy",
)
FLAT_SHARE = 0.02  # a run whose loss falls by less than this share has learnt nothing worth an evaluation


def machine_figures() -> Json:
    """What this process has used so far: peak memory in bytes, processor time in seconds (all cores)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "system/peak_memory_bytes": used.ru_maxrss * 1024,  # Linux counts in KiB
        "system/cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: its trainer state is the last file that the trainer writes."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)


def refuse_not_finite(values: Json) -> None:
    """Raise NothingLearned on a loss or gradient norm that is no number."""
    for name in ("loss", "grad_norm", "eval_loss"):
        value = values.get(name)
        if value is not None and not math.isfinite(value):
            raise NothingLearned(
                f"{name} is {value} at step {values.get('step')}: training has diverged; lower train.learning_rate"
            )


class Watch:
    """Collects losses; `callback` plugs into the trainer, `verdict` judges the finished run."""

    def __init__(self, log: Path, steps: int, tokens_a_step: float) -> None:
        self.log = log
        self.tokens_a_step = tokens_a_step
        self.progress = Progress("train", steps, "steps")
        self.losses: list[float] = []
        self.eval_losses: list[float] = []
        self.grad_norms: list[float] = []
        self.scores: list[tuple[int, float]] = []
        self.train_seconds = self.started = 0.0
        self.steps_done = 0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        watch = self

        class Callback(TrainerCallback):
            """Reports what the trainer does; raises NothingLearned on a value that is no number."""

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watch.recall(state.log_history)
                watch.progress.done = state.global_step

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watch.started = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watch.train_seconds += time.perf_counter() - watch.started
                watch.steps_done += 1
                watch.progress.advance(note=watch.note())

            def on_log(self, args: Any, state: Any, control: Any, logs: Json | None = None, **_: Any) -> None:
                values = {"step": state.global_step} | {key: logs[key] for key in KEPT if logs and key in logs}
                refuse_not_finite(values)
                if len(values) > 1:
                    watch.take(values)

        return Callback()

    def take(self, values: Json) -> None:
        """Remember one set of figures and append it to the log."""
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values | machine_figures() | {"time": round(time.time(), 3)}) + "\n")
        self._remember(values)
        if "eval_score" in values:
            loss, score = self.eval_losses[-1], values["eval_score"]
            say(f"step {values['step']}: validation loss {loss:.4f}, task score {score:.3f}")

    def _remember(self, values: Json) -> None:
        if "loss" in values:
            self.losses.append(values["loss"])
        if "grad_norm" in values:
            self.grad_norms.append(values["grad_norm"])
        if "eval_loss" in values:
            self.eval_losses.append(values["eval_loss"])
        if "eval_score" in values:
            self.scores.append((values["step"], values["eval_score"]))

    def recall(self, history: list[Json]) -> None:
        """Take up the figures of the steps before a resume; the log keeps lines up to the checkpoint only."""
        for values in history:
            self._remember(values)
        step = history[-1].get("step", 0) if history else 0
        if self.log.is_file():
            kept = [line for line in self.log.read_text().splitlines() if json.loads(line)["step"] <= step]
            self.log.write_text("".join(line + "\n" for line in (kept if history else [])))

    def tokens_per_second(self) -> float:
        """Real (unpadded) tokens a second of training steps, evaluations apart."""
        return self.steps_done * self.tokens_a_step / max(self.train_seconds, 1e-9)

    def note(self) -> str:
        loss = f", loss {self.losses[-1]:.4f}" if self.losses else ""
        return f"{self.tokens_per_second():,.0f} tokens/s{loss}"

    def verdict(self) -> Json:
        """The run's figures; raises NothingLearned when the loss is flat or no gradient ever flowed."""
        if self.grad_norms and max(self.grad_norms) == 0:
            raise NothingLearned("every gradient was zero: the adapter is not connected to the loss")
        if len(self.eval_losses) >= 2:
            first, last, what = self.eval_losses[0], min(self.eval_losses[1:]), "validation loss"
        else:
            tenth = max(1, len(self.losses) // 10)
            first, last = sum(self.losses[:tenth]) / tenth, sum(self.losses[-tenth:]) / tenth
            what = "training loss"
        if not last < first * (1 - FLAT_SHARE):
            raise NothingLearned(
                f"nothing learned: {what} {first:.4f} at the start, {last:.4f} at best; "
                "check the answers, raise train.learning_rate or train.epochs"
            )
        return {
            "steps": len(self.losses),
            "loss_first": self.losses[0],
            "loss_last": self.losses[-1],
            "eval_losses": self.eval_losses,
            "scores": self.scores,
            "tokens_per_second": round(self.tokens_per_second(), 1),
            "train_seconds": round(self.train_seconds, 1),
        }
