"""Trains again and again, each time killed at a random moment, and compares every run that ends with an unkilled one.

Arguments: working folder, kills, seed. Prints, as JSON, how many kills landed in which phase, how many lives went
on from a checkpoint, and in what finished runs differ from the unkilled one (an empty list when in nothing).

Every life is a child forked from this process, which has everything imported but has computed nothing: a process that
has run a backward pass or a parallel region cannot be forked and go on. A child says what it is at in one shared byte.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from potstill import models
from potstill.completers import transformers as completing
from potstill.dataset import write_preferences
from potstill.progress import say
from tests.stages import test_then, test_training
from tests.stages.datasets import finish, write_rows
from tests.stages.tiny_llama import tiny_base
from training import attention, checkpoints, fit, loop, optimizer, scoring, speed
from training.objectives import choose, preferences

IMPORTED_ONCE = (
    peft,
    transformers.AutoModelForCausalLM,
    completing,
    attention,
    choose,
    optimizer,
    preferences,
    scoring,
)
PHASES = ("loading", "step", "checkpoint", "evaluation", "closing", "done")
VARIANTS: dict[str, dict[str, Any]] = {
    "packed, dropout, a checkpoint a step": {"lora": {"dropout": 0.2}, "checkpoint_steps": 1, "evals": 4},
    "packed, dropout, few checkpoints": {"lora": {"dropout": 0.2}, "checkpoint_steps": 3, "evals": 4},
    "unpacked, no dropout, patience": {"packing": False, "patience": 2, "checkpoint_steps": 1, "evals": 8},
    "preferences in a second phase": {
        "lora": {"dropout": 0.2},
        "epochs": 0.5,
        "evals": 2,
        "checkpoint_steps": 1,
        "then": {"objective": "dpo", "learning_rate": 0.01, "batch_tokens": 512},
    },
    "packed, in small micro-batches": {"micro_tokens": 64, "checkpoint_steps": 2, "evals": 4, "seed": 5},
}
COMMON: dict[str, Any] = {"batch_tokens": 256, "epochs": 1.5, "score_rows": 4}
at_work = mmap.mmap(-1, 1)  # shared with the children


def in_phase(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, saying in the shared byte that it is at work (and what was, when it returns)."""

    def wrapped(*args: Any, **named: Any) -> Any:
        before = at_work[0]
        at_work[0] = PHASES.index(name)
        try:
            return function(*args, **named)
        finally:
            at_work[0] = before

    return wrapped


def mark_phases() -> None:
    """Put the marks around what a run does. Its speed measurement is left out: it costs most of a short life."""
    changed: Any = loop
    changed.learn = in_phase("step", loop.learn)
    changed.evaluate = in_phase("evaluation", loop.evaluate)
    changed.take_best = in_phase("closing", loop.take_best)
    files: Any = checkpoints
    files.write_checkpoint = in_phase("checkpoint", checkpoints.write_checkpoint)
    files.discard = in_phase("closing", checkpoints.discard)
    for measuring in (fit, speed):
        changed = measuring
        changed.matrix_product_flops = lambda device: 0.0


def outcome(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """All that must be the same: every step, every evaluation, the adapter, the best step."""
    logs = [each.read_text() for each in (out / "trainer_log.jsonl", out / "then_log.jsonl") if each.is_file()]
    lines = [json.loads(line) for text in logs for line in text.splitlines()]
    fleeting = ("time", "tokens_per_second", "seconds")
    kept = [{k: v for k, v in e.items() if k not in fleeting and not k.startswith("system/")} for e in lines]
    return {
        "log": kept,
        "adapter": hashlib.sha256((out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "best_step": facts["training"]["best_checkpoint_step"],
        "left": sorted(each.name for each in out.iterdir()),
    }


def live(base: models.Base, dataset: Path, out: Path, changes: dict[str, Any], log: Path) -> int:
    """Fork one life of the run; returns its process id. When it ends by itself, its outcome stands beside `out`."""
    at_work[0] = 0
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        facts = test_training.trained(base, dataset, out, **(COMMON | changes))
        at_work[0] = PHASES.index("done")
        out.with_suffix(".json").write_text(json.dumps(outcome(out, facts)))
        code = 0
    except BaseException as fault:
        say(f"{type(fault).__name__}: {fault}")
    finally:
        os._exit(code)


def wait_for(child: int, phase: int, longest_s: float) -> int | None:
    """Wait until the child is in the phase, or `longest_s` are over; the exit code when it has ended."""
    end = time.monotonic() + longest_s
    while time.monotonic() < end and at_work[0] != phase:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0002)
    return None


def kill_one(child: int, draw: random.Random, life_s: float) -> tuple[int, int]:
    """Kill the child at a random moment of its life, or at one of a phase; returns its exit code and the phase.

    Half of the moments are drawn from the whole life, the others shortly after a phase was entered for the n-th time.
    """
    code = None
    if draw.random() < 0.5:
        code = wait_for(child, 255, draw.uniform(0, life_s))
    else:
        phase = draw.choice([1, 2, 2, 3])
        for _ in range(draw.randint(1, 12)):
            code = code if code is not None else wait_for(child, phase, life_s)
            time.sleep(draw.uniform(0, 0.003))
    if code is not None:
        return code, PHASES.index("done")
    phase = at_work[0]
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), phase


def unkilled(base: models.Base, dataset: Path, out: Path, changes: dict[str, Any]) -> tuple[dict[str, Any], float]:
    start = time.monotonic()
    child = live(base, dataset, out, changes, out.with_suffix(".log"))
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"the unkilled run failed:\n{out.with_suffix('.log').read_text()[-3000:]}")
    found: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return found, time.monotonic() - start


def killed_again_and_again(
    base: models.Base, dataset: Path, work: Path, changes: dict[str, Any], kills: int, draw: random.Random
) -> tuple[Counter[str], int, list[str]]:
    """Kill runs of one variant; returns the kills by phase, the finished runs, and in what they differ."""
    work.mkdir()
    expected, life_s = unkilled(base, dataset, work / "unkilled", changes)
    landed, finished, differing = Counter[str](), 0, list[str]()
    while landed.total() < kills:
        out = work / f"killed-{finished}"
        child = live(base, dataset, out, changes, out.with_suffix(".log"))
        code, phase = kill_one(child, draw, life_s)
        if code == -signal.SIGKILL and not out.with_suffix(".json").exists():
            landed[PHASES[phase]] += 1
        elif code not in (0, -signal.SIGKILL):
            raise SystemExit(f"a resumed run failed:\n{out.with_suffix('.log').read_text()[-3000:]}")
        if out.with_suffix(".json").exists() or landed.total() == kills:
            found = (
                json.loads(out.with_suffix(".json").read_text())
                if out.with_suffix(".json").exists()
                else unkilled(base, dataset, out, changes)[0]
            )
            differing += [f"{work.name}/{out.name}: {key}" for key in expected if found[key] != expected[key]]
            finished += 1
    return landed, finished, differing


def make_dataset(folder: Path) -> Path:
    write_rows(folder, *([test_training.example(at) for at in which] for which in (range(60), range(300, 306))))
    judged = {"train": [*map(test_then.judged, range(24))], "validation": [*map(test_then.judged, range(300, 320))]}
    write_preferences(
        folder,
        {split: [pair for pair, _ in rows] for split, rows in judged.items()},  # type: ignore[misc]
        {split: [] for split in judged},  # type: ignore[misc]
    )
    return finish(folder)


def main() -> None:
    work, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    mark_phases()
    base, dataset = tiny_base(work / "base"), make_dataset(work / "dataset")
    landed, finished, differing, resumed = Counter[str](), 0, list[str](), 0
    for number, (name, changes) in enumerate(VARIANTS.items()):
        draw, share = random.Random(f"{seed}/{name}"), kills // len(VARIANTS)
        found = killed_again_and_again(base, dataset, work / f"variant-{number}", changes, share, draw)
        landed, finished, differing = landed + found[0], finished + found[1], differing + found[2]
        lives = (work / f"variant-{number}").glob("killed-*.log")
        resumed += sum(log.read_text().count("going on from step-") for log in lives)
        say(f"{name}: {dict(found[0])}, {found[1]} runs finished")
    print(json.dumps({"landed": dict(landed), "resumed": resumed, "finished": finished, "differing": differing}))


if __name__ == "__main__":
    main()
