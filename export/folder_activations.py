"""What comes into every linear layer of the student on training rows: which errors of rounding matter, and together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from potstill import chat, models
from potstill.trained import find_trained, load_trained

from .importance import MOST_TOKENS, see_inputs, spread, tokens_of, within_tokens

if TYPE_CHECKING:
    import torch

    from .formats import Source

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


def _measured(model: Any, texts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, seen: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + (seen.T @ seen).cpu()

    # the body: the output matrix is not quantised
    tokens = see_inputs(model.model, dict(_linear(model)), texts, add, "activations")
    return {f"{name}.weight": each / tokens for name, each in sums.items()}


def _linear(model: Any) -> list[tuple[str, Any]]:
    """The linear layers of the body."""
    import torch

    return [(f"model.{name}", each) for name, each in model.model.named_modules() if isinstance(each, torch.nn.Linear)]
