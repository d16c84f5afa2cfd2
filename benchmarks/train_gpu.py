"""QLoRA on one GPU: real tokens a second of ours, of TRL's SFTTrainer by default and with Liger, by size of model.

In:  models of 1.5B, 4B and 8B shape with random weights (train/shapes.py; nothing is downloaded), rows of random
     tokens with lengths as of chats (median 220, at most 1,024).
Out: figures and checks (see benchmarks/record.py).
Run: `python -m benchmarks.train_gpu [--quick] [--json] [--keep] [--shape NAME ...]`

NF4 weights, LoRA of rank 16 on every linear layer. Each run has a process of its own; ours and TRL's take turns. Speed
counts real tokens, not padding, after two steps to warm up. MFU is the work a step needs (train/product.py) over the
device's own bf16 matrix product, and over the maker's figure. Without a CUDA device it says so and ends with 3.
`--device cpu --shape tiny` tries the benchmark itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import replace

from benchmarks.record import WORK, arguments, ratio
from benchmarks.train.job import Job, Ran, run_job
from benchmarks.train.product import nominal, weights_of
from benchmarks.train.report import CurveRecord, Runs, describe, describe_machine
from benchmarks.train.rows import like_chat, write_rows
from benchmarks.train.shapes import SHAPES, build

FOLDER = WORK / "train_gpu"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "liger-kernel", "flash-attn")
GOALS = {"1.5b": 35_000, "4b": 15_000, "8b": 8_000}  # real tokens a second on an H100
ROWS, ROWS_PACKED = 4_000, 16
TOLERANCE = 1e-3  # of the loss, packed against one row at a time


def main() -> int:
    """Measure, print, and return the exit code."""
    args = options()
    record = CurveRecord("train_gpu", quick=args.quick, packages=PACKAGES)
    shapes = args.shape or list(GOALS)
    if args.device == "cuda" and (missing := no_cuda()):
        record.note(f"not measured: {missing}")
        for shape in shapes:
            check_shape(record, shape, {})
        return record.finish(as_json=args.json, keep=args.keep)
    if args.device == "cpu":
        record.note("on a processor: this tries the benchmark itself; its goals are meant for an H100")
    for shape in shapes:
        check_shape(record, shape, measure(record, shape, args))
    return record.finish(as_json=args.json, keep=args.keep)


def options() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=SHAPES, nargs="+", help=f"models to measure (default {' '.join(GOALS)})")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, help="optimiser steps of a run, two to warm up among them")
    parser.add_argument("--turns", type=int, help="runs of each candidate (default 3; with --quick 1)")
    args = parser.parse_args()
    if args.steps is not None and args.steps < 3:
        parser.error(f"--steps {args.steps}: the first two warm up; give at least 3")
    return args


def no_cuda() -> str | None:
    """Why nothing can be measured here; None where a CUDA device is at hand."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if torch.cuda.is_available():
        return None
    return f"torch {torch.__version__} finds no CUDA device; run this on a machine with an NVIDIA GPU and a CUDA build"


def measure(record: CurveRecord, shape: str, args: argparse.Namespace) -> dict[str, Runs]:
    """All candidates on one shape in turn; the figures are recorded under the shape's name."""
    base = build(shape, FOLDER / f"base-{shape}", args.device)
    config = json.loads((base / "config.json").read_text())
    rows = FOLDER / f"rows-{shape}.json"
    write_rows(like_chat(ROWS, config["vocab_size"], seed=0, longest=128 if shape == "tiny" else 1024), rows)
    steps = args.steps or (8 if args.quick else 16)
    job = Job("ours", str(base), str(rows), steps, learning_rate=2e-4, device=args.device, product_s=0.0)
    if args.device == "cuda":
        job = replace(job, quantization="nf4", product_s=0.4)
    weights = weights_of(config, job.rank)
    found = {"ours": Runs(job, weights), "TRL default": Runs(replace(job, candidate="trl-default"), weights)}
    if importlib.util.find_spec("liger_kernel") is not None and args.device == "cuda":
        found["TRL with Liger"] = Runs(replace(job, candidate="trl-liger"), weights)
    else:
        record.note(f"{shape}: TRL with Liger was not run: liger-kernel is not installed, or there is no GPU")
    for turn in range(args.turns or (1 if args.quick else 3)):
        for name, runs in found.items():
            runs.add(run(f"{shape}, turn {turn + 1}: {name}", runs.job))
    describe_machine(record, list(found.values()))
    for name, runs in found.items():
        describe(record, f"{shape}, {name}", runs)
    utilisation(record, shape, found["ours"])
    packed_against_alone(record, shape, job)
    return found


def run(title: str, job: Job) -> Ran:
    """One run, announced on stderr with its speed."""
    print(f"train_gpu: {title} ...", file=sys.stderr, end=" ", flush=True)
    ran = run_job(job, FOLDER)
    speed = f"{ran.rate(job.warmup):,.0f} tokens/s" if ran.steps.seconds else "done"
    print(ran.fault or f"{speed} ({ran.wall_s:.0f} s)", file=sys.stderr, flush=True)
    return ran


def utilisation(record: CurveRecord, shape: str, ours: Runs) -> None:
    """MFU against the maker's figure; that against the device's own product is among the figures of the candidate."""
    for each in ours.done[:1]:
        peak = nominal(each.device)
        if peak is None:
            record.note(f"{shape}: the nominal peak of {each.device!r} is not known here")
        else:
            record.figure(f"{shape}, ours: MFU of the nominal peak", [done / peak for done in ours.operations], "share")


def packed_against_alone(record: CurveRecord, shape: str, job: Job) -> None:
    """The same rows' loss, packed and one at a time."""
    wanted = replace(job, does="packed_loss", batches=[list(range(ROWS_PACKED))])
    ran = run(f"{shape}: packed and unpacked loss", wanted)
    if ran.fault:
        record.note(f"{shape}: packed loss could not be compared: {ran.fault}")
        return
    packed, alone = ran.extra["packed"], ran.extra["alone"]
    record.figure(f"{shape}: packed loss", packed, "nats")
    record.figure(f"{shape}: unpacked loss", alone, "nats")
    record.figure(f"{shape}: packed loss apart", abs(packed - alone) / abs(alone), "share")


def check_shape(record: CurveRecord, shape: str, found: dict[str, Runs]) -> None:
    """Speed, the ratio to padded TRL, packed loss and gradient norms; what was not measured has not passed."""
    ours, padded = found.get("ours"), found.get("TRL default")
    speed = record.figures.get(f"{shape}, ours: real tokens/s")
    if shape in GOALS:
        record.check(f"{shape}: real tokens/s", speed, at_least=GOALS[shape], unit="tokens/s")
    times = ratio(ours.rates, padded.rates) if ours and padded else None
    record.check(f"{shape}: ours / padded TRL", times, at_least=3, unit="times")
    apart = record.figures.get(f"{shape}: packed loss apart")
    record.check(f"{shape}: packed loss apart", apart, at_most=TOLERANCE)
    record.check(f"{shape}: smallest gradient norm", ours.smallest_norm if ours else None, at_least=1e-6)


if __name__ == "__main__":
    raise SystemExit(main())
