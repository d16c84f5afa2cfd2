"""Our side: the only place of these benchmarks that knows how the train stage is called."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .job import Job, Steps
from .product import settle
from .rows import Row
from .start import same_start


def train(job: Job, rows: Sequence[Row]) -> Steps:
    """Train as the job says with the stage's own model, optimiser, packing and loss, and its default step size."""
    import torch
    from transformers import get_scheduler

    from potstill import models
    from training.fit import answer_loss
    from training.optimizer import MasterAdamW
    from training.run import Settings

    models.prepare_torch()
    model = student(job)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = MasterAdamW(trained, lr=job.learning_rate, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=job.steps)
    steps = Steps()
    settle(job.device)
    last = time.perf_counter()
    for batch in itertools.islice(batches(job, rows, Settings().batch_tokens, Settings().window), job.steps):
        loss, _ = answer_loss(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        steps.losses.append(float(loss.detach()))
        steps.gradient_norms.append(float(norm))
        settle(job.device)
        now = time.perf_counter()
        steps.seconds.append(now - last)
        last = now
        steps.tokens.append(int(batch["tokens"]))
        steps.computed.append(int(batch["input_ids"].numel()))
        steps.learnt.append(int((batch["labels"][:, 1:] != -100).sum()))
    return steps


def student(job: Job) -> Any:
    """The stage's student, from the job's adapter weights where it names any."""
    from training.model import student as make

    model = make(
        Path(job.base), quantization=job.quantization, rank=job.rank, alpha=job.alpha, dropout=0.0, seed=job.seed
    )
    if job.dtype == "float32":
        model = model.float()
    if job.adapter is not None:
        same_start(model, Path(job.adapter))
    return model.train()


def batches(job: Job, rows: Sequence[Row], batch_tokens: int, window: int) -> Iterator[dict[str, Any]]:
    """Packed batches: of the job's rows a step where it says which, else of blocks in shuffled order, for ever."""
    from training.rows import make_blocks, pack, pack_length_for

    packed = [_stage_row(at, row) for at, row in enumerate(rows)]
    length = pack_length_for(packed, window)
    if job.batches is not None:
        for chosen in job.batches:
            yield tensors(pack([packed[at] for at in chosen], length), length, job.device)
        return
    a_step = max(1, round(batch_tokens / length))
    blocks = make_blocks(packed, length, job.seed)
    for epoch in itertools.count():
        random.Random(job.seed + epoch).shuffle(blocks)
        for start in range(0, len(blocks) - a_step + 1, a_step):
            yield tensors(blocks[start : start + a_step], length, job.device)


def tensors(blocks: Sequence[Any], length: int, device: str) -> dict[str, Any]:
    """Ids, labels and positions of some blocks, and the number of their real tokens."""
    import torch

    from training.rows import block_columns

    found = [block_columns(block, length, 0) for block in blocks]
    batch: dict[str, Any] = {name: torch.tensor([each[name] for each in found], device=device) for name in found[0]}
    return batch | {"tokens": sum(len(row.token_ids) for block in blocks for row in block)}


def packed_loss(job: Job, rows: Sequence[Row]) -> dict[str, float]:
    """Mean loss a learnt token over the job's first batch of rows: packed, and one row at a time."""
    import torch

    from potstill import models
    from training.fit import answer_loss
    from training.rows import pack, pack_length_for

    models.prepare_torch()
    model = student(job)
    chosen = [_stage_row(at, rows[at]) for at in (job.batches or [list(range(min(16, len(rows))))])[0]]
    length = pack_length_for(chosen, 2048)
    learnt = sum(row.supervised_tokens for row in chosen)
    with torch.no_grad():
        packed = answer_loss(model, tensors(pack(chosen, length), length, job.device), learnt)[0]
        alone = sum(
            answer_loss(model, tensors([[row]], len(row.token_ids), job.device), learnt)[0].double() for row in chosen
        )
    return {"packed": float(packed), "alone": float(alone)}


def _stage_row(at: int, row: Row) -> Any:
    from training.rows import Row as StageRow

    return StageRow(f"r{at}", row.token_ids, ((len(row.prompt), len(row)),))
