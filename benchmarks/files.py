"""The files that a training ships as, held against teacher and adapter, and a gate that takes no worse one.

In:  a finished dataset and adapter folder, the gold answers, and the adapter of a worse student of the same task.
Out: a line a file (accuracy with interval, difference from teacher and adapter, KL, size, tokens/s), the file that
     `choose: smallest` takes, and the verdicts that a worse student's file and a test of 60 rows get.
Run: python -m benchmarks.files --dataset DIR --adapter DIR --gold FILE --worse DIR [--formats ...] [--json] [--keep]

Export and evaluation are the stages themselves, in a folder of their own under work/bench/files; answers are kept
there, so that an interrupted run goes on. The worse file is judged on 600 rows, with `--quick` every file is.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import evaluation.run
import export.run
from potstill.errors import ManifestMismatch
from potstill.manifest import Input, read_manifest, write_manifest
from potstill.stage import Noun, Shared

from .record import WORK, Record, arguments

FORMATS = ("gguf-q8_0", "gguf-q4_k_m")
FEW = 60
ENOUGH = 600  # rows that show a clearly worse student; --quick judges every file on them


def main() -> int:
    """Measure and report; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--worse", type=Path, required=True, help="adapter folder of a worse student")
    parser.add_argument("--gold", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    args = parser.parse_args()
    record = Record("files", quick=args.quick, packages=("xllamacpp", "libgguf", "torch"))
    place, rows = WORK / "files", ENOUGH if args.quick else None
    artifact = exported(args, args.adapter, place / f"artifact-{args.adapter.name}")
    gate: dict[str, Any] = {"choose": "smallest"}
    report = judged(args, artifact, place / "report-files", ["teacher", "adapter", "artifacts"], gate, rows)
    table(record, artifact, report)
    record.note(f"chosen: {report['gate']['candidate']}; {report['headline']['title']}")
    record.check("a file was chosen and its gate passed", float(report["gate"]["passed"]), at_least=1)
    worse(record, args, place, report["gate"]["candidate"])
    few(record, args, artifact, place)
    swapped(record, args, artifact, place)
    return record.finish(as_json=args.json, keep=args.keep)


def shared_of(args: argparse.Namespace, place: Path) -> Shared:
    """What the stages share, from what the adapter says of itself."""
    made = read_manifest(args.adapter, "adapter", verify=False)
    contract = json.loads((args.adapter / "contract.json").read_text())
    return Shared("files", contract["task"], made.facts["base"]["spec"], place / "files", "")


def exported(args: argparse.Namespace, adapter: Path, out: Path) -> Path:
    """An artifact folder of the adapter in every format asked for; taken as it is where it is finished."""
    upstream: dict[Noun, Path] = {"dataset": args.dataset, "adapter": adapter}
    wanted = {"formats": list(args.formats), "max_mismatch_share": 1.0}  # the gate decides here, not the share alone
    if not (out / "manifest.json").is_file():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        facts = export.run.main(export.run.Settings(**wanted), shared_of(args, out.parent), upstream, out)
        finish(out, "artifact", wanted, upstream, facts)
    return out


def judged(
    args: argparse.Namespace, artifact: Path, out: Path, candidates: list[str], gate: dict[str, Any], rows: int | None
) -> dict[str, Any]:
    """The report on an artifact, by the stage itself; its answers are kept beside it."""
    upstream: dict[Noun, Path] = {"dataset": args.dataset, "adapter": args.adapter, "artifact": artifact}
    wanted = {"gold": str(args.gold), "candidates": candidates, "gate": gate, "max_rows": rows}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    place = out.parent if rows != FEW else out.parent / "few"
    evaluation.run.main(evaluation.run.Settings(**wanted), shared_of(args, place), upstream, out)
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def finish(folder: Path, noun: Noun, settings: Any, upstream: dict[Noun, Path], facts: Any) -> None:
    inputs = [Input(each, str(path), read_manifest(path, each, verify=False).digest) for each, path in upstream.items()]
    write_manifest(folder, noun, settings_passed=settings, settings_used=settings, inputs=inputs, facts=facts)


def table(record: Record, artifact: Path, report: dict[str, Any]) -> None:
    """A line a candidate."""
    formats = read_manifest(artifact, "artifact", verify=False).facts["formats"]
    measured = json.loads((artifact / "verification.json").read_text())
    against = {(each["candidate"], each["baseline"]): each for each in report["comparisons"]}
    for name, entry in report["candidates"].items():
        quality, kind = entry["quality"], name.removeprefix("artifact:")
        words = [f"{name}: {quality['value']:.4f} [{quality['low']:.4f}, {quality['high']:.4f}] of {quality['n']}"]
        for other in ("teacher", "adapter"):
            if (found := against.get((name, other))) is not None:
                span = f"{100 * found['low']:+.2f}, {100 * found['high']:+.2f}"
                words.append(f"{100 * found['difference']:+.2f} [{span}] points from the {other}: {found['verdict']}")
        if kind in formats:
            words.append(_measured(formats[kind], measured[kind]))
        record.note("; ".join(words))
        record.figure(f"{name}: accuracy", quality["value"], "share")


def _measured(file: dict[str, Any], found: dict[str, Any]) -> str:
    """Size, KL to 16 bits a token (answers, then all text), speed in this run, and what is kept of the training."""
    parts = [f"{file['size_bytes'] / 1e6:.1f} MB"]
    for part in ("answer", "text"):
        each = found["divergence"][part]
        parts.append(
            f"KL of {part} tokens {each['kl_mean']:.5f} [{each['kl_mean_low']:.5f}, {each['kl_mean_high']:.5f}], "
            f"same likeliest token {each['same_top']:.1%}"
        )
    speed = found["speed"]
    parts.append(f"{speed['prompt_tokens_per_s']:.0f} tokens/s read, {speed['decode_tokens_per_s']:.0f} written")
    parts.append(f"update kept {found['update_kept']:.2f}")
    return "; ".join(parts)


def worse(record: Record, args: argparse.Namespace, place: Path, chosen: str) -> None:
    """The same gate on the file of a worse student."""
    artifact = exported(args, args.worse, place / f"artifact-{args.worse.name}")
    report = judged(args, artifact, place / "report-worse", ["teacher", chosen], {"candidate": chosen}, ENOUGH)
    record.note(f"a worse student's file: {report['headline']['title']} {'; '.join(report['gate']['reasons'])}")
    record.check("a worse student's file is refused", float(not report["gate"]["passed"]), at_least=1)


def few(record: Record, args: argparse.Namespace, artifact: Path, place: Path) -> None:
    """The same file on a test of sixty rows."""
    gate = {"candidate": "artifact:gguf-q8_0"}
    report = judged(args, artifact, place / "report-few", ["teacher", "artifact:gguf-q8_0"], gate, FEW)
    (main,) = (each for each in report["comparisons"] if each["baseline"] == "teacher")
    record.note(f"{FEW} rows: {main['verdict']}: {main['reason']}")
    named = main["verdict"] == "undecided" and main["rows_needed"] is not None
    record.check(f"{FEW} rows are undecided, with the rows that would do", float(named), at_least=1)


def swapped(record: Record, args: argparse.Namespace, artifact: Path, place: Path) -> None:
    """The worse student's file put where the better one's stood."""
    copy = place / "artifact-swapped"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(artifact, copy)
    shutil.copy2(place / f"artifact-{args.worse.name}" / "model-q8_0.gguf", copy / "model-q8_0.gguf")
    try:
        read_manifest(copy, "artifact")
        said = None
    except ManifestMismatch as refused:
        said = str(refused)
    record.note(f"the file swapped in place: {said or 'TAKEN'}")
    record.check("a file swapped in place is refused", float(said is not None), at_least=1)
    shutil.rmtree(copy)


if __name__ == "__main__":
    raise SystemExit(main())
