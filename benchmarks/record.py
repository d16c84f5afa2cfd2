"""What every benchmark leaves behind: figures with spread, checks against goals, one JSON, a table, an exit code.

    parser = arguments(__doc__)                             # --quick, --json, --keep; add your own
    args = parser.parse_args()
    record = Record("redaction", quick=args.quick, packages=("phonenumberslite", "python-stdnum"))
    for _ in range(3):                                      # ours and the peers in turn, in one run
        ours.append(...); theirs.append(...)
    record.figure("ours", ours, "rows/s")                   # a list of runs: median, low, high; or one number
    record.figure("presidio", theirs, "rows/s")
    record.check("ours / presidio", ratio(ours, theirs), at_least=50)
    record.check("peak memory", peak, at_most=2.0, unit="GB")
    record.note("presidio ran without a model of names")
    raise SystemExit(record.finish(as_json=args.json, keep=args.keep))

`finish` prints the table (or, with --json, the JSON alone) and writes the JSON under `work/bench/results/`, with
--keep under `benchmarks/results/`, which is committed. Exit code 0: every check passed; 3: one fell short or could
not be measured (`figure` None). Wall-clock figures of different runs are not compared: checks of speed are ratios
within one run wherever there is a peer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "work" / "bench"
KEPT = ROOT / "benchmarks" / "results"
PASSED, FELL_SHORT = 0, 3


@dataclass(frozen=True)
class Figure:
    """One measured quantity: the median of its runs, the lowest and the highest of them."""

    value: float | None
    unit: str
    low: float | None
    high: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Figure:
        """The figure of these runs; of no runs, one without a value."""
        if not values:
            return cls(None, unit, None, None, 0)
        return cls(statistics.median(values), unit, min(values), max(values), len(values))


@dataclass(frozen=True)
class Check:
    """A figure against its goal (`>= 20,000 rows/s`); what could not be measured has not passed."""

    name: str
    figure: float | None
    goal: str
    passed: bool


@dataclass
class Record:
    """One benchmark run. `packages` are the distributions whose versions the figures depend on.

    `part` names the part of the benchmark that this run is, whose file stands beside those of other parts.
    """

    name: str
    quick: bool = False
    packages: Iterable[str] = ()
    part: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))

    def __post_init__(self) -> None:
        self.versions = {"python": platform.python_version(), **versions_of(self.packages)}

    def figure(self, name: str, values: float | Sequence[float], unit: str) -> Figure:
        """Record a figure: one value, or one for each run."""
        found = Figure.of([values] if isinstance(values, int | float) else values, unit)
        self.figures[name] = found
        return found

    def check(
        self,
        name: str,
        figure: float | Figure | None,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        unit: str = "",
    ) -> bool:
        """Hold a figure against one bound; a Figure is judged by its median. None has not passed."""
        if (at_least is None) == (at_most is None):
            raise ValueError(f"check {name!r}: give at_least or at_most, one of them")
        value = figure.value if isinstance(figure, Figure) else figure
        if at_least is not None:
            goal, passed = f">= {shown(at_least)}", value is not None and value >= at_least
        else:
            assert at_most is not None
            goal, passed = f"<= {shown(at_most)}", value is not None and value <= at_most
        self.checks.append(Check(name, value, f"{goal} {unit}".strip(), passed))
        return passed

    def note(self, text: str) -> None:
        """Record what a reader must know of how a figure came about."""
        self.notes.append(text.replace(f"{ROOT}/", ""))

    @property
    def exit_code(self) -> int:
        return PASSED if all(each.passed for each in self.checks) else FELL_SHORT

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "command": command(self.name),
            "commit": commit(),
            "started": self.started,
            "quick": self.quick,
            "machine": {**machine(), "load_at_start": self.load},
            "versions": self.versions,
            "figures": {name: asdict(each) for name, each in self.figures.items()},
            "checks": [asdict(each) for each in self.checks],
            "notes": self.notes,
        }

    def table(self) -> str:
        """Figures, then checks, in columns for a terminal."""
        rows = [("figure", "median", "low", "high", "unit")]
        rows += [(n, shown(f.value), shown(f.low), shown(f.high), f.unit) for n, f in self.figures.items()]
        checks = [("check", "figure", "goal", "")]
        checks += [(c.name, shown(c.figure), c.goal, "passed" if c.passed else "FELL SHORT") for c in self.checks]
        return "\n\n".join([columns(rows), columns(checks), *self.notes])

    def finish(self, *, as_json: bool = False, keep: bool = False) -> int:
        """Print and write what was measured; returns the exit code."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        folder = KEPT if keep else WORK / "results"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ("-".join(filter(None, (self.name, self.part, "quick" if self.quick else ""))) + ".json")
        path.write_text(text + "\n", encoding="utf-8")
        print(text if as_json else f"{self.table()}\n\nwritten: {path.relative_to(ROOT)}", flush=True)
        return self.exit_code


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="at most ten minutes on two cores; the same checks")
    parser.add_argument("--json", action="store_true", help="print the JSON alone")
    parser.add_argument("--keep", action="store_true", help="write to benchmarks/results, to be committed")
    return parser


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Median over median; None where either was not measured."""
    return statistics.median(ours) / statistics.median(theirs) if ours and theirs else None


def machine() -> Json:
    """What the figures were measured on: processor, cores this process may use, memory, system, GPU."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    found: Json = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return found


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions by distribution name; what is not installed is left out."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the checkout, with `+changes` when files differ from it; None outside one."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed.strip() else "")


def command(name: str) -> str:
    """The command that repeats this run, from the root of a checkout; what lies elsewhere goes by its last name."""
    return shlex.join(["python", "-m", f"benchmarks.{name}", *map(placeless, sys.argv[1:])])


def placeless(word: str) -> str:
    """A word without this machine's folders: a path below the root from there, another absolute one as `.../NAME`."""
    inside = word.replace(f"{ROOT}/", "")
    return f".../{Path(inside).name}" if inside.startswith("/") else inside


def shown(value: float | None) -> str:
    """A number with as many digits as it deserves."""
    if value is None:
        return "not measured"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows in aligned columns; the first column to the left, numbers to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
