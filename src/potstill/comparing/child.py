"""One base in a process of its own: `python -m potstill.comparing.child JOB.json`.

`train` runs the ordinary train stage on the slice; `answer` lets the trained adapter answer the rows to judge on.
A process each, so that the peak of memory is the step's own and all of it is given back. What went wrong is written
to the job's outcome file; the process ends when its standard input closes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from potstill.completers import CompletionRequest
from potstill.engine_child import wait_for_the_end
from potstill.manifest import Manifest, read_manifest, write_atomically
from potstill.progress import track
from potstill.recipe import Recipe
from potstill.records import Json
from potstill.stage import Noun, Shared

from .slices import read_judged

ANSWERS = "answers.jsonl"


@dataclass(frozen=True, slots=True)
class Job:
    """One step for one base. `folder` holds the slice (`dataset`) and the adapters; answers of one go to `out`."""

    do: Literal["train", "answer"]
    recipe: str
    overrides: tuple[str, ...]
    spec: str
    folder: str
    dataset: str
    adapter: str
    out: str
    outcome: str

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> Job:
        data = json.loads(path.read_text())
        return cls(**data | {"overrides": tuple(data["overrides"])})


@dataclass(frozen=True, slots=True)
class InComparison(Shared):
    """The shared keys of a base within a comparison: folders of its own, converted bases with everybody else's."""

    cache: Path = Path()

    @property
    def cache_dir(self) -> Path:
        return self.cache


def recipe_for(recipe: Path, overrides: Sequence[str], spec: str, folder: Path) -> tuple[Recipe, Any]:
    """The recipe with this base, its folders under `folder`, and the train stage."""
    from potstill.commands.recipes import read

    found, modules = read(str(recipe), [*overrides, f"base_model={json.dumps(spec)}"])
    shared = found.shared
    values = {name: getattr(shared, name) for name in Shared.__dataclass_fields__}
    inside = InComparison(**values | {"work_dir": folder}, cache=shared.cache_dir)
    return replace(found, shared=inside), modules["train"]


def train(job: Job) -> Json:
    """Train on the slice, unless that is done."""
    from potstill.pipeline import plan_stage, run_stage

    recipe, module = recipe_for(Path(job.recipe), job.overrides, job.spec, Path(job.folder))
    made: dict[Noun, Manifest | None] = {"dataset": read_manifest(Path(job.dataset), "dataset")}
    plan = plan_stage(recipe, "train", module, made)
    if not plan.done:
        run_stage(recipe, plan, module, made)
    return {"gpu_peak_bytes": gpu_peak()}


def answer(job: Job) -> Json:
    """Greedy answers of the adapter to the judged rows, with what they cost; loading is not counted."""
    from potstill.completers.transformers import TransformersCompleter
    from potstill.contract import Contract

    adapter, out = Path(job.adapter), Path(job.out)
    facts = read_manifest(adapter, "adapter", verify=False).facts
    contract = Contract.read(adapter)
    task = contract.make_task()
    rows = read_judged(Path(job.dataset))
    started = time.monotonic()
    completer = TransformersCompleter.student(adapter, Path(facts["base"]["path"]))
    loaded = time.monotonic()
    requests = [
        CompletionRequest(
            each.id, each.messages, each.tools,
            max_tokens=contract.max_tokens, stop=tuple(contract.stop), constraint=task.constraint(),
        )
        for each in rows
    ]  # fmt: skip
    lines, prompt_tokens, answer_tokens = [], 0, 0
    answering = track(completer.complete(requests), f"answers of {job.spec}", len(requests))
    for row, completion in zip(rows, answering, strict=True):
        parsed = task.parse(completion.text, row.tools)
        scores = task.score(parsed.value, task.parse(row.answer, row.tools).value)
        kept = {"id": row.id, "conversation": row.conversation, "text": completion.text, "valid": parsed.valid}
        lines.append(json.dumps(kept | {"scores": scores}, ensure_ascii=False))
        prompt_tokens += completion.prompt_tokens or 0
        answer_tokens += completion.completion_tokens or 0
    seconds = time.monotonic() - loaded
    write_atomically(out / ANSWERS, "".join(f"{line}\n" for line in lines).encode())
    return {
        "rows": len(rows), "seconds": round(seconds, 3), "load_seconds": round(loaded - started, 1),
        "prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens, "gpu_peak_bytes": gpu_peak(),
    }  # fmt: skip


def gpu_peak() -> int | None:
    """Bytes that this process held on the GPU at most; None without one."""
    import torch

    return int(torch.cuda.max_memory_reserved()) if torch.cuda.is_available() else None


def end_with_parent(parent: int) -> None:
    """Leave at once when whoever started this is gone."""
    wait_for_the_end(parent)
    os._exit(1)


def main(words: Sequence[str]) -> int:
    """Do the job; whatever goes wrong is the outcome, since one base's fault is a row of the comparison."""
    job = Job.read(Path(words[0]))
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        outcome = {"done": train(job) if job.do == "train" else answer(job)}
    except Exception as fault:
        if not type(fault).__module__.startswith("potstill."):
            traceback.print_exc()
        outcome = {"failed": {"kind": type(fault).__name__, "message": str(fault)}}
    write_atomically(Path(job.outcome), json.dumps(outcome).encode())
    return 0 if "done" in outcome else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
