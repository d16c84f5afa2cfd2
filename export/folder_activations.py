"""What comes into every linear layer of the student on training rows: which columns matter when weights are rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from potstill import chat
from potstill.progress import track
from potstill.records import Example
from potstill.trained import find_trained, load_trained

if TYPE_CHECKING:
    import torch

    from .formats import Source

ROWS = 256
BATCH_ROWS = 16
Row = tuple[list[int], list[int]]  # prompt, answer


def mean_squares(source: Source, rows: int = ROWS) -> dict[str, torch.Tensor]:
    """The mean square of every input column of every linear layer, (columns,) in float32, by its weight's name.

    Over the tokens of up to `rows` training rows (prompt and answer); empty when there are none.
    """
    chosen = spread(source.rows, rows)
    if not chosen:
        return {}
    tokenizer = chat.load_tokenizer(source.tokenizer)
    encoded = [chat.prompt_and_completion(tokenizer, each.messages, each.tools, each.answer) for each in chosen]
    model = load_trained(find_trained(source.trained, source.base))
    model.eval()
    return _measured(model, [[*prompt, *answer][: source.contract.window] for prompt, answer in encoded])


def spread(rows: Sequence[Example], most: int) -> list[Example]:
    """Up to `most` rows, evenly spread over the stored order."""
    return list(rows) if len(rows) <= most else [rows[at * len(rows) // most] for at in range(most)]


def _measured(model: Any, sequences: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    import torch

    sums: dict[str, torch.Tensor] = {}
    count = 0
    mask = torch.empty(0)

    def look(name: str) -> Callable[[Any, Any], None]:
        def hook(_: Any, inputs: Any) -> None:
            squares = (inputs[0].float().square() * mask.unsqueeze(-1)).sum(dim=(0, 1)).cpu()
            sums[name] = sums[name] + squares if name in sums else squares

        return hook

    with _watched(model, look), torch.inference_mode():
        for ids, mask in track(batches(sequences, model.device), "activations", unit="batches"):
            model.model(input_ids=ids, attention_mask=mask)  # the body: the output matrix is not quantised
            count += int(mask.sum())
    return {f"{name}.weight": each / count for name, each in sums.items()}


@contextmanager
def _watched(model: Any, look: Callable[[str], Callable[[Any, Any], None]]) -> Iterator[None]:
    import torch

    handles = [
        each.register_forward_pre_hook(look(name))
        for name, each in model.named_modules()
        if isinstance(each, torch.nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def batches(sequences: Sequence[list[int]], device: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and their mask, both (rows, longest), padded on the right; sequences of like length together."""
    import torch

    ranked = sorted(sequences, key=len)
    for start in range(0, len(ranked), BATCH_ROWS):
        batch = ranked[start : start + BATCH_ROWS]
        width = len(batch[-1])
        ids = torch.tensor([each + [0] * (width - len(each)) for each in batch], device=device)
        mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in batch], device=device)
        yield ids, mask
