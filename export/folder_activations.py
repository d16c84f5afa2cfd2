"""What comes into every linear layer of the student on training rows: which errors of rounding matter, and together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from potstill import chat, models
from potstill.progress import track
from potstill.trained import find_trained, load_trained

from .importance import MOST_TOKENS, spread, tokens_of, within_tokens

if TYPE_CHECKING:
    import torch

    from .formats import Source

BATCH_ROWS = 16
MOST_BYTES = 8_000_000_000  # of moments held at once: enough for models of about 2B parameters


def second_moments(source: Source, rows: int, most_bytes: int = MOST_BYTES) -> dict[str, torch.Tensor]:
    """E[x x^T] of every linear layer's input, (columns, columns) in float32, by its weight's name.

    Over the tokens of up to `rows` training rows (prompt and answer). Empty without rows, and where the matrices
    would take more than `most_bytes`.
    """
    chosen = spread(source.rows, rows) if rows else []
    if not chosen:
        return {}
    models.prepare_torch()
    tokenizer = chat.load_tokenizer(source.tokenizer)
    model = load_trained(find_trained(source.trained, source.base))
    model.eval()
    if sum(4 * each.in_features**2 for _, each in _linear(model)) > most_bytes:
        return {}
    texts = [tokens_of(tokenizer, row, source.contract.window) for row in chosen]
    return _measured(model, within_tokens(texts, [len(each) for each in texts], MOST_TOKENS))


def _measured(model: Any, sequences: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    import torch

    sums: dict[str, torch.Tensor] = {}
    count = 0
    real = torch.empty(0, dtype=torch.bool)  # which positions of the batch are not padding

    def look(name: str) -> Callable[[Any, Any], None]:
        def hook(_: Any, inputs: Any) -> None:
            seen = inputs[0].float()[real]
            sums[name] = sums.get(name, 0.0) + (seen.T @ seen).cpu()

        return hook

    with _watched(model, look), torch.inference_mode():
        for ids, mask in track(_batches(sequences, model.device), "activations", unit="batches"):
            real = mask.bool()
            model.model(input_ids=ids, attention_mask=mask)  # the body: the output matrix is not quantised
            count += int(mask.sum())
    return {f"{name}.weight": each / count for name, each in sums.items()}


def _linear(model: Any) -> list[tuple[str, Any]]:
    """The linear layers of the body."""
    import torch

    return [(f"model.{name}", each) for name, each in model.model.named_modules() if isinstance(each, torch.nn.Linear)]


@contextmanager
def _watched(model: Any, look: Callable[[str], Callable[[Any, Any], None]]) -> Iterator[None]:
    handles = [each.register_forward_pre_hook(look(name)) for name, each in _linear(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batches(sequences: Sequence[list[int]], device: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and their mask, both (rows, longest), padded on the right; sequences of like length together."""
    import torch

    ranked = sorted(sequences, key=len)
    for start in range(0, len(ranked), BATCH_ROWS):
        batch = ranked[start : start + BATCH_ROWS]
        width = len(batch[-1])
        ids = torch.tensor([each + [0] * (width - len(each)) for each in batch], device=device)
        mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in batch], device=device)
        yield ids, mask
