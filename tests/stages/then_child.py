"""One of several processes of the train stage with a second phase: `python -m tests.stages.then_child JOB.json`."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from potstill import models
from potstill.records import Json
from tests.stages.test_then import shared_for
from training import processes, run


def main(job: Json) -> None:
    out = Path(job["out"])
    base = models.resolve_base(job["base"], out.parent)
    models.load_float = partial(models.load_float, dtype="float32")  # bf16 would drift apart over two phases
    settings: Any = run.Settings.model_validate(job["settings"])
    shared = shared_for(base, out.parent)
    if processes.first():
        facts = run.main(settings, shared, {"dataset": Path(job["dataset"])}, out)
        (out / "facts.json").write_text(json.dumps(facts))
    else:
        run.follow(settings, shared)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
    os._exit(0)  # as the command ends: gloo's threads abort an interpreter that is taken down under them
