"""How much each input column of each matrix matters: its mean squared activation over training rows.

Quantisation then errs where little passes through (llama.cpp's importance matrix, ggml-org/llama.cpp pull request
4861). Only the training rows are read; the rows on which files are compared are others. Not the default: docs/export.md
has a measurement in which it undid the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from potstill import chat, models
from potstill.progress import track
from potstill.records import Example
from potstill.trained import find_trained, load_trained

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from .formats import Source

Row = TypeVar("Row")
BATCH_TOKENS = 1024
MOST_TOKENS = 32_768  # long conversations: enough for a mean of squares, minutes instead of hours on a CPU
# A column that nothing passed through still gets a little weight: a block of zeros would leave its scale undefined.
LEAST_SHARE = 1e-6


def column_importance(source: Source, most: int) -> dict[str, NDArray[np.float32]]:
    """By the weight's name, (columns,) of mean squared inputs over at most `most` training rows, spread evenly.

    Where the output matrix is the embeddings, these have what the output matrix saw. Empty without rows.
    """
    rows = spread(source.rows, most)
    if not rows:
        return {}
    models.prepare_torch()
    tokenizer = chat.load_tokenizer(source.tokenizer)
    model = load_trained(find_trained(source.trained, source.base))
    model.eval()
    texts = [tokens_of(tokenizer, row, source.contract.window) for row in rows]
    return _observed(model, within_tokens(texts, [len(text) for text in texts], MOST_TOKENS))


def spread(rows: Sequence[Row], most: int) -> list[Row]:
    """At most `most` of the rows, evenly over their order."""
    return [rows[at * len(rows) // most] for at in range(most)] if len(rows) > most else list(rows)


def within_tokens(rows: Sequence[Row], lengths: Sequence[int], most_tokens: int) -> list[Row]:
    """As many of the rows, evenly over their order, as hold about `most_tokens`; at least one."""
    return spread(rows, max(1, len(rows) * most_tokens // max(1, sum(lengths))))


def tokens_of(tokenizer: Any, row: Example, window: int) -> list[int]:
    """A row as training saw it: prompt and answer, at most `window` tokens."""
    prompt, completion = chat.prompt_and_completion(tokenizer, row.messages, row.tools, row.answer)
    return (prompt + completion)[:window]


def _observed(model: Any, texts: Sequence[Sequence[int]]) -> dict[str, NDArray[np.float32]]:
    import torch

    sums: dict[str, Any] = {}

    def add(name: str, seen: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + seen.square().sum(0).double()

    linear = {f"{name}.weight": each for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    tokens = see_inputs(model, linear, texts, add, "importance of columns")
    found = {name: _floored((total / tokens).float().cpu().numpy()) for name, total in sums.items()}
    if "lm_head.weight" in found and model.config.tie_word_embeddings:
        found["model.embed_tokens.weight"] = found["lm_head.weight"]
    return found


def see_inputs(
    model: Any,
    linear: Mapping[str, Any],
    texts: Sequence[Sequence[int]],
    see: Callable[[str, torch.Tensor], None],
    what: str,
) -> int:
    """Show `see` what comes into each linear layer of `model`, (tokens, columns) in float32; returns the tokens in all.

    `linear` holds the layers by the names that `see` is told; `what` names the progress.
    """
    import torch

    real = torch.empty(0)  # which positions of the batch hold a token, not padding

    def watch(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        return lambda _, inputs: see(name, inputs[0].detach()[real].float())

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linear.items()]
    try:
        with torch.inference_mode():
            batches = list(_batches(texts))
            for batch in track(batches, what, len(batches)):
                longest = max(len(text) for text in batch)
                ids = [[*text, *[0] * (longest - len(text))] for text in batch]
                mask = [[1] * len(text) + [0] * (longest - len(text)) for text in batch]
                held = torch.tensor(mask, device=model.device)
                real = held.bool()
                model(input_ids=torch.tensor(ids, device=model.device), attention_mask=held, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(len(text) for text in texts)


def _batches(texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Texts of like length together, padded to at most BATCH_TOKENS."""
    batch: list[Sequence[int]] = []
    for text in sorted(texts, key=len):
        if batch and len(text) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _floored(values: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    mean = float(values.mean())
    floored: NDArray[np.float32] = np.maximum(values, np.float32(LEAST_SHARE * mean if mean > 0 else 1.0))
    return floored
