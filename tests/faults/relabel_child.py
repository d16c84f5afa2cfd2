"""Starts relabelling processes quickly: imports everything once, then forks one for each line on standard input.

A line is a job (JSON). For each it prints the new process's id, and when that has ended its exit status
(negative: the signal that killed it).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from distillation.relabel import Relabel, RelabelRow, relabel
from potstill.records import canonical_json
from potstill.tasks.classification import Classification
from tests.local_teacher import LABELS


def rows(count: int) -> list[RelabelRow]:
    """Rows with an old answer, every third corrected."""
    return [
        RelabelRow(
            id=f"row-{at}",
            messages=[{"role": "system", "content": "Label the mail."}, {"role": "user", "content": f"mail {at}"}],
            tools=[],
            teacher_answer=LABELS[at % 4],
            correction=LABELS[(at // 3) % 4] if at % 3 == 0 else None,
        )
        for at in range(count)
    ]


def work(job: dict[str, Any]) -> None:
    """Relabel and write results and facts, if it gets that far."""
    settings = Relabel.model_validate(job["settings"])
    results, facts = relabel(settings, Classification(LABELS), rows(job["rows"]), Path(job["cache"]))
    out = Path(job["out"])
    out.with_suffix(".tmp").write_text(canonical_json({"results": [asdict(each) for each in results], "facts": facts}))
    out.with_suffix(".tmp").rename(out)


def main() -> None:
    httpx.Client().close()  # it imports the rest of what it needs at first use
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                work(json.loads(line))
                os._exit(0)
            except BaseException as fault:
                print(f"{type(fault).__name__}: {fault}", file=sys.stderr, flush=True)
                os._exit(1)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
