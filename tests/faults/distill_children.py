"""Distils a log again and again, each time killed at a random moment, then once to the end. Run by the test beside it.

Arguments: log, working folder, kills, seed. Prints the digest of the dataset and how the children ended, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy
import pyarrow.compute
import pyarrow.parquet
import sklearn.naive_bayes

import distillation.chunks
import distillation.run
from potstill.pipeline import run_pipeline
from potstill.recipe import load_recipe

IMPORTED_ONCE = (numpy, pyarrow.compute, pyarrow.parquet, sklearn.naive_bayes)  # every child needs them
sys.modules["tokenizers"] = None  # type: ignore[assignment]  # as where only the core is installed: no base is needed
distillation.chunks.BLOCK_BYTES = 60_000  # many blocks of a small log
LONGEST_S = 4.0

RECIPE = """
name: mail
task: {{kind: classification, labels: [card, cash, loan]}}
base_model: {base}
work_dir: {work}
distill:
  sources: [{{path: {log}, format: openai_pairs}}]
  damaged_limit: 0.05
  split: {{test: 0.3}}
"""


def distil(log: Path, work: Path) -> str:
    """The digest of the dataset."""
    recipe_path = work / "recipe.yaml"
    sections = {"distill": distillation.run.Settings}
    recipe = load_recipe(recipe_path, [], sections)
    outcome = run_pipeline(recipe, {"distill": distillation.run}, "distill", track=False)
    return str(outcome["dataset"]["digest"])


def main() -> None:
    log, work, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    base = work / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    (work / "recipe.yaml").write_text(RECIPE.format(base=base, work=work / "out", log=log))
    draw, ended = random.Random(seed), Counter[str]()
    while ended["killed"] < kills:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            distil(log, work)
            os._exit(0)
        time.sleep(draw.uniform(0, LONGEST_S))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            ended["killed"] += 1
        else:
            ended["finished" if os.waitstatus_to_exitcode(status) == 0 else "failed"] += 1
            for folder in (work / "out").glob("*/dataset-*/manifest.json"):
                folder.unlink()  # so that there is something to do again
    print(json.dumps({"digest": distil(log, work), "ended": dict(ended)}))


if __name__ == "__main__":
    main()
