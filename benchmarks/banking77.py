"""Banking77 with all human gold, and from the noisy log alone: the exported file on all held-out questions, by seed.

    python -m benchmarks.banking77 [key=value ...] --log LOG --gold GOLD [--learn gold log] [--seeds 0 1 2] [--keep]

Each run is `configs/banking77/cpu.yaml` as it stands (with the key=value words after it), as a user runs it, in a
folder of its own under --work: what is finished is taken as it is, an interrupted run goes on.
`gold` learns from the same questions answered by the human labels, without corrections; the test rows are the same.
About 40 minutes a run on two quiet cores. `--quick` trains 20 steps and judges 200 rows, to try the way.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from potstill.errors import GateRefused
from potstill.manifest import read_manifest

from .lines import read_lines
from .record import ROOT, WORK, Record, arguments

RECIPE = ROOT / "configs" / "banking77" / "cpu.yaml"
GOALS = {"gold": 0.92, "log": 0.88}
AHEAD = 0.10  # what the student from the log is to be better than its teacher by
SHORT = ("train.max_steps=20", "train.evals=1", "train.score_rows=20", "evaluate.max_rows=200")


def main() -> int:
    """Run what is asked for and report; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--log", type=Path, required=True, help="the traffic log, JSON lines, gzip")
    parser.add_argument("--gold", type=Path, required=True, help="JSON lines {id, answer}, gzip")
    parser.add_argument("--learn", nargs="+", choices=tuple(GOALS), default=list(GOALS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=WORK / "banking77")
    parser.add_argument("--gold-log", type=Path, help="where the log of human labels is, or is written")
    parser.add_argument("--prefix", default="", help="of the runs' folders, to keep those of other words apart")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings of the recipe, instead of its own")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    place = args.gold_log or args.work / "gold-log.jsonl.gz"
    alone = args.learn[0] if len(args.learn) == 1 else ""  # kinds with words of their own are run, and kept, apart
    record = Record("banking77", args.quick, ("torch", "transformers", "peft", "xllamacpp"), part=alone)
    for kind in args.learn:
        log = args.log if kind == "log" else gold_log(args.log, args.gold, place)
        reports = [one_run(record, args, kind, seed, log) for seed in args.seeds]
        told(record, kind, reports)
    return record.finish(as_json=args.json, keep=args.keep)


def gold_log(log: Path, gold: Path, out: Path) -> Path:
    """The log with every answer the human label's and no feedback; rows without gold are left out."""
    if out.is_file():
        return out
    answers = {each["id"]: each["answer"] for each in read_lines(gold)}
    partial = out.with_suffix(".partial")
    with partial.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream:
        for each in read_lines(log):
            if each["id"] in answers:
                each["response"]["choices"][0]["message"]["content"] = answers[each["id"]]
                each["feedback"] = []
                stream.write((json.dumps(each) + "\n").encode())
    return partial.rename(out)


def one_run(record: Record, args: argparse.Namespace, kind: str, seed: int, log: Path) -> dict[str, Any]:
    """All stages of one recipe as far as the report, which is returned."""
    name = f"{args.prefix}{kind}-s{seed}"
    words = [
        f"name={name}",
        f"work_dir={args.work.resolve()}",
        f"distill.sources.0.path={log.resolve()}",
        f"evaluate.gold={args.gold.resolve()}",
        "evaluate.candidates=[teacher,artifacts]",
        "evaluate.parallel=2",
        f"train.seed={seed}",
        *args.words,
        *(SHORT if args.quick else ()),
    ]
    command = [sys.executable, "-m", "potstill.cli", "evaluate", str(RECIPE), *words, "--no-track", "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    # of all gold the teacher is the gold itself: no gate passes there
    if done.returncode not in (0, GateRefused.exit_code):
        raise SystemExit(f"{name} ended with {done.returncode}; see above")
    made = json.loads(done.stdout)
    found: dict[str, Any] = json.loads((Path(made["report"]["path"]) / "report.json").read_text())
    trained = read_manifest(Path(made["adapter"]["path"]), "adapter", verify=False).facts["training"]
    seconds = [made[noun]["seconds"] for noun in ("dataset", "artifact", "report")]
    # a stage that went on after an interruption counts from there; the steps' own seconds are of all of them
    record.figure(
        f"{name}: the whole way", sum(seconds) + max(made["adapter"]["seconds"], trained["train_seconds"]), "s"
    )
    record.figure(f"{name}: training steps", trained["train_seconds"], "s")
    record.figure(f"{name}: validation loss", trained["eval_losses"][-1], "nats a token")
    return found


def told(record: Record, kind: str, reports: list[dict[str, Any]]) -> None:
    """Accuracy by seed with its interval, their median against the goal, and the difference from the teacher."""
    values, ahead = [], []
    for report in reports:
        file = report["gate"]["candidate"]
        quality = report["candidates"][file]["quality"]
        values.append(quality["value"])
        found = [quality["low"], quality["value"], quality["high"]]
        record.figure(f"{report['name']}: accuracy of {file}", found, f"of {quality['n']} rows, 95 %")
        (against,) = (e for e in report["comparisons"] if (e["candidate"], e["baseline"]) == (file, "teacher"))
        ahead.append(against["difference"])
        shown = [against["low"], against["difference"], against["high"]]
        if kind == "log":
            record.figure(f"{report['name']}: against its teacher", shown, f"{against['verdict']}, 95 %")
    record.check(f"{kind}: accuracy, median of {len(values)} seeds", statistics.median(values), at_least=GOALS[kind])
    if kind == "log":
        record.check("log: ahead of its teacher, median", statistics.median(ahead), at_least=AHEAD)


if __name__ == "__main__":
    raise SystemExit(main())
