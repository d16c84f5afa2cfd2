"""Three real steps of a recipe's training in a process of their own: tokens/s, peak memory, hours and cost.

    probe(settings, shared, {"dataset": folder}, tokens) -> {"tokens_per_second", "peak_bytes", "hours", "usd", ...}

The child runs the train stage itself with three steps, no scoring and an empty folder that is thrown away, so that
what is measured is what will run: the same kernels, the same packing, the same memory. It gets the rows of those steps
alone, and a micro-batch of validation rows: a teacher is asked about no others. A second phase (`then`) is not run.
Loops are compiled where the whole training's would be.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import NothingLearned, PotstillError
from potstill.progress import say
from potstill.records import Json
from potstill.stage import Shared, Upstream

if TYPE_CHECKING:
    from .rows import Tokenised
    from .run import Settings

STEPS = 3
MEASURED = "potstill-probe "


def probe(settings: Settings, shared: Shared, upstream: Upstream, tokens: int) -> Json:
    """Speed and peak of three real steps, and what `tokens` would take and cost; raises PotstillError on a fault."""
    from .forecast import time_and_cost

    with tempfile.TemporaryDirectory(prefix="potstill-probe-") as scratch:
        say(f"probe: {STEPS} real steps")
        measured = measure(settings, shared, upstream["dataset"], Path(scratch))
    return measured | {"tokens": tokens} | time_and_cost(settings, tokens, measured["tokens_per_second"])


def measure(settings: Settings, shared: Shared, dataset: Path, out: Path) -> Json:
    """Run the train stage for three steps in a new process; returns tokens/s and the peak that it saw of itself."""
    asked = {
        "settings": settings.model_dump(mode="json", exclude_unset=True),
        "shared": asdict(shared) | {"work_dir": str(shared.work_dir), "recipe_path": None},
        "dataset": str(dataset),
        "out": str(out),
    }
    return run_child(asked) | {"steps": STEPS}


def shortened(settings: Settings) -> Json:
    """The settings with three steps of the first phase, evaluated before and after; nothing is scored or preferred.

    The usable share of a few rows is no reason to refuse: training judges that of all.
    """
    whole = settings.model_dump(mode="json")
    distil = whole["distil"] | {"least_usable": 0.0}
    return whole | {"max_steps": STEPS, "evals": 1, "score_rows": 0, "then": None, "distil": distil}


def few_rows(
    whole: Settings, settings: Settings, rows: Tokenised, held: Tokenised
) -> tuple[Settings, Tokenised, Tokenised]:
    """The rows of the first steps, and validation rows up to a micro-batch.

    With the settings, in which loops are compiled as the `whole` training's are: three steps alone would go without.
    """
    import torch

    from .forecast import CPU_MICRO_TOKENS, fused_here, units_of
    from .packing import Stream, micro_batches

    stream = Stream(units_of(rows), seed=settings.seed, step_tokens=settings.batch_tokens, max_steps=STEPS)
    wanted = {unit.id for at in range(STEPS) for unit in stream.step(at)}
    seen = micro_batches(units_of(held), settings.micro_tokens or CPU_MICRO_TOKENS)[:1]
    if whole.compile == "auto" and not torch.cuda.is_available():
        settings = settings.model_copy(update={"compile": fused_here(whole, rows)})
    return (
        settings,
        replace(rows, rows=[row for row in rows.rows if row.id in wanted]),
        replace(held, rows=[row for units in seen for unit in units for row in unit.rows]),
    )


def run_child(asked: Json) -> Json:
    """Run the train stage with these settings in a new process; returns what it measured of itself."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(
        command, input=json.dumps(asked), capture_output=True, text=True, env=environment, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MEASURED)]
    if done.returncode or not lines:
        last = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise PotstillError(f"the probe ended with code {done.returncode}; its last lines:\n{last}")
    found: Json = json.loads(lines[-1].removeprefix(MEASURED))
    return found


def main() -> None:
    """The child: trains by what stands on standard input, prints one line of figures."""
    print(MEASURED + json.dumps(train_few(json.load(sys.stdin))))


def train_few(asked: Json) -> Json:
    """Train as asked, in this process; returns tokens/s and the peak."""
    from . import run

    shared: Json = asked["shared"]
    out = Path(asked["out"])
    whole = run.Settings.model_validate(asked["settings"])
    settings = run.Settings.model_validate(shortened(whole))
    given = Shared(**(shared | {"work_dir": Path(shared["work_dir"])}))
    log = out / "trainer_log.jsonl"
    try:
        run.main(settings, given, {"dataset": Path(asked["dataset"])}, out, partial(few_rows, whole))
    except NothingLearned:
        if not log.is_file():  # refused before the first step
            raise
        # three steps of warm-up need not learn: the log has their times
    return {"tokens_per_second": speed(log), "peak_bytes": peak_bytes()}


def speed(log: Path) -> float:
    """Tokens a second of the middle step, from the log that training keeps (the first, which warms up, left out)."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found = [float(line["tokens_per_second"]) for line in lines if "tokens_per_second" in line]
    return statistics.median(found[1:] or found)


def peak_bytes() -> int:
    """The most this process ever had resident, or of the GPU's memory where one is used."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            outside = total - free - torch.cuda.memory_reserved()
            return int(torch.cuda.max_memory_reserved()) + max(int(outside), 0)
    return resident_peak_bytes()


def resident_peak_bytes() -> int:
    """The most this process ever had resident (Linux: of this program alone, not of the one that forked it)."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (each for each in status.read_text().splitlines() if each.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    kibibytes = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * kibibytes


if __name__ == "__main__":
    main()
