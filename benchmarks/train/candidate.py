"""`python -m benchmarks.train.candidate JOB OUT`: do one job (see job.py) and write what came of it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .job import Job, Steps
from .product import product_rates
from .rows import read_rows


def perform(job: Job) -> dict[str, Any]:
    """The job's outcome as JSON: steps, matrix products before and after, device and its peak memory."""
    from training.probe import resident_peak_bytes

    from . import ours, with_trl

    rows = read_rows(Path(job.rows))
    if job.does == "packed_loss":
        return {"steps": asdict(Steps()), "extra": ours.packed_loss(job, rows)}
    products = [product_rates(job.device, job.product_s)]
    if job.device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    train = ours.train if job.candidate == "ours" else with_trl.train
    steps = train(job, rows)
    steps.check(job.steps)
    found: dict[str, Any] = {"steps": asdict(steps), "device": job.device}
    if job.device == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    products.append(product_rates(job.device, job.product_s))
    return found | {"products": products, "peak_bytes": resident_peak_bytes()}


def main() -> None:
    """Read the job, do it, write the outcome."""
    asked, out = sys.argv[1:]
    found = perform(Job.read(Path(asked)))
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
