"""One of several processes that train the tiny model: `python -m tests.stages.processes_child JOB.json`.

Writes the log of process 0, and the trained vector of each process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from potstill.records import Json
from training import processes
from training.loop import Plan, train
from training.model import student
from training.objectives.answers import Answers
from training.packing import Stream, Unit
from training.rows import Row
from training.watch import Watch


def units(count: int, first: int) -> list[Unit]:
    """Rows of different lengths and weights; some steps hold a single long one, so that a process has nothing."""
    made = []
    for at in range(first, first + count):
        length = 60 if at % 7 == 0 else 12 + at % 9
        ids = tuple(3 + (at * 31 + place * place) % 400 for place in range(length))
        made.append(Unit(f"u{at}", (Row(f"u{at}", ids, ((length // 2, length),), 1.0 + at % 3),)))
    return made


def main(job: Json) -> None:
    out = Path(job["out"])
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    processes.join()
    made: Any = student(
        Path(job["base"]), quantization=job["quantization"], rank=4, alpha=8, dropout=job.get("dropout", 0.0), seed=1,
        lean=False, shardable=job["shard"],
    )  # fmt: skip
    if job["quantization"] == "none":
        made = made.float()
    if job["shard"]:
        processes.shard(made)
    learnt, held = units(40, 0), units(9, 100)
    stream = Stream(learnt, seed=3, step_tokens=64, max_steps=job["steps"])

    def stop(line: Json) -> None:
        if line["step"] == job.get("stop_at") and "loss" in line:
            raise SystemExit(0)

    log = out / "log.jsonl" if processes.first() else Path(os.devnull)
    plan = Plan(
        learning_rate=5e-3, schedule="cosine", warmup_share=0.1, weight_decay=0.0, max_grad_norm=1.0, micro_tokens=48,
        evals=2, patience=None, checkpoint_minutes=60, checkpoint_steps=1,
    )  # fmt: skip
    train(made, Answers(learnt), stream, held, plan, Watch(log, stream.steps, live=stop), out / "checkpoints")
    flat = torch.cat([each.detach().float().reshape(-1) for each in made.parameters() if each.requires_grad])
    torch.save({"trained": flat, "local": local_bytes(made)}, out / f"process-{processes.rank()}.pt")
    processes.leave()


def local_bytes(model: Any) -> int:
    """Bytes of the frozen weights of the decoder layers that stand in this process."""
    layers = model.get_base_model().get_decoder().layers
    parts = [each for each in layers.parameters() if not each.requires_grad]
    parts = [each.to_local() if hasattr(each, "to_local") else each for each in parts]
    return sum(each.numel() * each.element_size() for each in parts)


if __name__ == "__main__":
    with contextlib.suppress(SystemExit):  # where the job says to stop
        main(json.loads(Path(sys.argv[1]).read_text()))
    os._exit(0)  # as the command ends: gloo's threads abort an interpreter that is taken down under them
