"""Three real steps of a recipe's training in a process of their own: tokens/s, peak memory, hours and cost.

    probe(settings, shared, {"dataset": folder}) -> {"tokens_per_second", "peak_bytes", "hours", "usd", ...}

The child runs the train stage itself with three steps, no scoring and an empty folder that is thrown away, so that
what is measured is what will run: the same kernels, the same packing, the same memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import NothingLearned, PotstillError
from potstill.progress import say
from potstill.records import Json
from potstill.stage import Shared, Upstream

if TYPE_CHECKING:
    from .run import Settings

STEPS = 3
MEASURED = "potstill-probe "


def probe(settings: Settings, shared: Shared, upstream: Upstream) -> Json:
    """Figures of three real steps; raises PotstillError with the child's last lines when they fail."""
    from .forecast import time_and_cost

    shown = settings.model_dump(mode="json")
    with tempfile.TemporaryDirectory(prefix="potstill-probe-") as scratch:
        asked = {
            "settings": shown | {"max_steps": STEPS, "evals": 1, "score_rows": 0},
            "shared": asdict(shared) | {"work_dir": str(shared.work_dir), "recipe_path": None},
            "dataset": str(upstream["dataset"]),
            "out": scratch,
        }
        say(f"probe: {STEPS} real steps")
        measured = run_child(asked)
    planned = tokens_of(settings, measured)
    return (
        measured | {"steps": STEPS, "tokens": planned} | time_and_cost(settings, planned, measured["tokens_per_second"])
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


def tokens_of(settings: Settings, measured: Json) -> int:
    """Tokens of the whole training: all epochs, or as many steps as are set."""
    if settings.max_steps is not None:
        return round(settings.max_steps * measured["tokens_a_step"])
    return round(measured["tokens_an_epoch"] * settings.epochs)


def main() -> None:
    """The child: trains by what stands on standard input, prints one line of figures."""
    from . import run

    asked = json.load(sys.stdin)
    shared: Json = asked["shared"]
    out = Path(asked["out"])
    settings = run.Settings.model_validate(asked["settings"])
    given = Shared(**(shared | {"work_dir": Path(shared["work_dir"])}))
    facts: Json = {}
    with contextlib.suppress(NothingLearned):  # three steps of warm-up need not learn; the log has their times
        facts = run.main(settings, given, {"dataset": Path(asked["dataset"])}, out)["training"]
    print(MEASURED + json.dumps(figures(out / "trainer_log.jsonl", facts) | {"peak_bytes": peak_bytes()}))


def figures(log: Path, facts: Json) -> Json:
    """Speed from the training's own facts."""
    return {
        "tokens_per_second": facts["tokens_per_second"],
        "tokens_an_epoch": facts["tokens_an_epoch"],
        "tokens_a_step": facts["tokens_an_epoch"] / facts["blocks"],
    }


def peak_bytes() -> int:
    """The most this process ever had resident (Linux: of this program alone, not of the one that forked it), or of
    the GPU's memory where one is used."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            outside = total - free - torch.cuda.memory_reserved()
            return int(torch.cuda.max_memory_reserved()) + max(int(outside), 0)
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (each for each in status.read_text().splitlines() if each.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    kibibytes = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * kibibytes


if __name__ == "__main__":
    main()
