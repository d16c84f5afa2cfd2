"""How much each input column of each matrix matters: its mean squared activation over training rows.

Quantisation then errs where little passes through (llama.cpp's importance matrix, ggml-org/llama.cpp pull request
4861). Only the training rows are read; the rows on which files are compared are others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from potstill import chat, models
from potstill.progress import track
from potstill.records import Example
from potstill.trained import find_trained, load_trained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .formats import Source

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
    return _observed(model, [tokens_of(tokenizer, row, source.contract.window) for row in rows])


def spread(rows: Sequence[Example], most: int) -> list[Example]:
    """At most `most` of the rows, evenly over their order."""
    return [rows[at * len(rows) // most] for at in range(most)] if len(rows) > most else list(rows)


def tokens_of(tokenizer: Any, row: Example, window: int) -> list[int]:
    """A row as training saw it: prompt and answer, at most `window` tokens."""
    prompt, completion = chat.prompt_and_completion(tokenizer, row.messages, row.tools, row.answer)
    return (prompt + completion)[:window]


def _observed(model: Any, texts: Sequence[Sequence[int]]) -> dict[str, NDArray[np.float32]]:
    import torch

    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(_: Any, inputs: tuple[Any, ...]) -> None:
            seen = inputs[0].detach().float().flatten(0, -2)
            sums[name] = sums.get(name, 0.0) + seen.square().sum(0).double()
            counts[name] = counts.get(name, 0) + len(seen)

        return add

    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    hooks = [module.register_forward_pre_hook(watch(f"{name}.weight")) for name, module in linear.items()]
    try:
        with torch.inference_mode():
            for text in track(texts, "importance of columns", len(texts)):
                model(input_ids=torch.tensor([list(text)], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: _floored((total / counts[name]).float().cpu().numpy()) for name, total in sums.items()}
    if "lm_head.weight" in found and model.config.tie_word_embeddings:
        found["model.embed_tokens.weight"] = found["lm_head.weight"]
    return found


def _floored(values: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    mean = float(values.mean())
    floored: NDArray[np.float32] = np.maximum(values, np.float32(LEAST_SHARE * mean if mean > 0 else 1.0))
    return floored
