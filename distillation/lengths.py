"""How long the rows are, in tokens of the base (in characters when no tokenizer is installed)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from potstill.dataset import SEALED
from potstill.progress import say
from potstill.records import Json
from potstill.stage import Shared

from .fingerprints import prompt_text

MOST_ROWS = 2000  # a split; what a tokenizer needs for a million rows would be most of the stage's time


def row_lengths(shared: Shared, out: Path) -> Json:
    """Median, 95th percentile and longest of prompt, full prompt and answer, a split, over at most MOST_ROWS of it."""
    count, unit = _counter(shared)
    report: Json = {}
    for name, path in (("train", "train.parquet"), ("validation", "validation.parquet"), ("test", str(SEALED))):
        rows, of = _spread(out / path)
        report[name] = {
            part: _summary(count(texts), unit) | {"rows": len(texts), "of": of}
            for part, texts in (
                ("prompt", [prompt_text(json.loads(each)) for each in rows["messages"]]),
                ("prompt as logged", [prompt_text(json.loads(each)) for each in rows["full_messages"]]),
                ("answer", rows["answer"]),
            )
        }
    return report


def _spread(path: Path) -> tuple[dict[str, list[str]], int]:
    """Rows evenly spread over a split, and how many it has."""
    import pyarrow.parquet as pq

    columns = ["messages", "full_messages", "answer"]
    file = pq.ParquetFile(path)
    size = file.metadata.num_rows
    wanted = [at * size // MOST_ROWS for at in range(MOST_ROWS)] if size > MOST_ROWS else list(range(size))
    rows: dict[str, list[str]] = {name: [] for name in columns}
    start, at = 0, 0
    for batch in file.iter_batches(columns=columns):
        here = []
        while at < len(wanted) and wanted[at] < start + len(batch):
            here.append(wanted[at] - start)
            at += 1
        for name in columns:
            rows[name] += batch.column(name).take(here).to_pylist() if here else []
        start += len(batch)
    return rows, size


def _counter(shared: Shared) -> tuple[Callable[[list[str]], list[int]], str]:
    try:
        from tokenizers import Tokenizer

        from potstill.models import resolve_tokenizer

        base = resolve_tokenizer(shared.base_model, shared.cache_dir)
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))  # transformers would take seconds to import
    except ModuleNotFoundError as fault:
        say(f"lengths are in characters: {fault.name} is not installed")
        return (lambda texts: [len(each) for each in texts]), "characters"

    def tokens(texts: list[str]) -> list[int]:
        distinct = list(dict.fromkeys(texts))  # a standing instruction is the same in every row
        encoded = tokenizer.encode_batch_fast(distinct, add_special_tokens=False)
        found = dict(zip(distinct, (len(each.ids) for each in encoded), strict=True))
        return [found[each] for each in texts]

    return tokens, "tokens"


def _summary(lengths: list[int], unit: str) -> Json:
    ranked = sorted(lengths) or [0]
    return {
        "median": ranked[len(ranked) // 2],
        "p95": ranked[min(len(ranked) - 1, int(len(ranked) * 0.95))],
        "longest": ranked[-1],
        "total": sum(ranked),
        "unit": unit,
    }
