"""Answers from a transformers model in this process: the base or a student, batched, greedy, constrained to labels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill import chat, models
from potstill.completers import Completion, CompletionRequest
from potstill.tasks.base import Constraint
from potstill.trained import Trained, find_trained, load_trained

TOKENS_A_BATCH = 4096  # prompt tokens times rows: keeps activations small and the matrix products large


class TransformersCompleter:
    """Greedy answers by `model.generate`, prompts of similar length together, left-padded.

    Labels are enforced by a prefix tree over their token ids; JSON schemas are not (validity is then a finding).
    `latency_ms` is the wall time of the batch that the request was answered in.
    """

    def __init__(
        self, base: Path, adapter: Path | None, tokenizer: Path, *, name: str = "adapter", batch_rows: int = 64
    ) -> None:
        models.prepare_torch()
        self.name = name
        self.batch_rows = batch_rows
        self._tokenizer = chat.load_tokenizer(tokenizer)
        self._model = load_trained(Trained(base, adapter, tokenizer))
        self._model.eval()

    @classmethod
    def student(cls, folder: Path, base: Path, *, name: str = "adapter", batch_rows: int = 64) -> TransformersCompleter:
        """A completer over what training left in `folder`: an adapter to `base`, or a model of its own."""
        found = find_trained(folder, base)
        return cls(found.model, found.adapter, found.tokenizer, name=name, batch_rows=batch_rows)

    @classmethod
    def around(
        cls, model: Any, tokenizer: Any, *, name: str = "adapter", batch_rows: int = 64
    ) -> TransformersCompleter:
        """A completer over a model that is already loaded (used for task scores while training)."""
        self = cls.__new__(cls)
        self.name, self.batch_rows, self._model, self._tokenizer = name, batch_rows, model, tokenizer
        return self

    def close(self) -> None:
        """Let the model go."""
        self._model = None

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        prompts = [
            chat.encode(self._tokenizer, chat.render(self._tokenizer, each.messages, each.tools)) for each in requests
        ]
        done: dict[int, Completion] = {}
        following = 0
        for batch in _batches([len(prompt) for prompt in prompts], self.batch_rows):
            for at, completion in zip(batch, self._answer(batch, requests, prompts), strict=True):
                done[at] = completion
            while following in done:
                yield done.pop(following)
                following += 1

    def _answer(
        self, batch: Sequence[int], requests: Sequence[CompletionRequest], prompts: Sequence[list[int]]
    ) -> list[Completion]:
        import torch

        start = time.perf_counter()
        width = max(len(prompts[at]) for at in batch)
        end = self._tokenizer.convert_tokens_to_ids(chat.end_of_turn(self._tokenizer))
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else end
        ids = torch.tensor([[pad] * (width - len(prompts[at])) + prompts[at] for at in batch])
        mask = torch.tensor([[0] * (width - len(prompts[at])) + [1] * len(prompts[at]) for at in batch])
        allowed = self._allowed(requests[batch[0]].constraint, width, end)
        # Of labels alone: the scores of a long answer would fill the memory.
        scored = allowed is not None and requests[batch[0]].logprobs
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                max_new_tokens=max(requests[at].max_tokens for at in batch),
                do_sample=False,
                eos_token_id=end,
                pad_token_id=pad,
                return_dict_in_generate=True,
                output_logits=scored,
                **({"prefix_allowed_tokens_fn": allowed} if allowed else {}),
            )
        took = (time.perf_counter() - start) * 1000
        logprobs = _logprobs(out.logits, out.sequences[:, width:]) if scored else None
        completions = []
        for row, at in enumerate(batch):
            tokens = out.sequences[row, width:].tolist()
            finished = end in tokens
            tokens = tokens[: tokens.index(end)] if finished else tokens
            spoken = len(tokens) + int(finished)
            completions.append(
                Completion(
                    id=requests[at].id,
                    text=self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False),
                    finish_reason="stop" if finished else "length",
                    prompt_tokens=len(prompts[at]),
                    completion_tokens=spoken,
                    latency_ms=took,
                    confidence=math.exp(sum(logprobs[row][:spoken])) if logprobs else None,
                )
            )
        return completions

    def _allowed(self, constraint: Constraint | None, width: int, end: int) -> Callable[[int, Any], list[int]] | None:
        """The tokens that may follow, from a prefix tree over the choices' ids; None when anything may."""
        if constraint is None or constraint.kind != "choices":
            return None
        tree: dict[int, Any] = {}
        for choice in constraint.choices:
            node = tree
            for token in [*chat.encode(self._tokenizer, choice), end]:
                node = node.setdefault(token, {})

        def following(_: int, tokens: Any) -> list[int]:
            node = tree
            for token in tokens[width:].tolist():
                node = node.get(token, {})
            return list(node) or [end]

        return following


def _logprobs(logits: Sequence[Any], tokens: Any) -> list[list[float]]:
    """(rows, steps): what the model itself gave each token, before the prefix tree left the others out."""
    import torch

    steps = [
        torch.log_softmax(each.float(), -1).gather(1, tokens[:, at : at + 1].to(each.device))[:, 0]
        for at, each in enumerate(logits)
    ]
    found: list[list[float]] = torch.stack(steps, dim=1).tolist()
    return found


def _batches(lengths: Sequence[int], most_rows: int) -> Iterator[list[int]]:
    """Row numbers in batches of like length, in an order that lets early rows be done early within windows."""
    window = most_rows * 16
    for start in range(0, len(lengths), window):
        ranked = sorted(range(start, min(start + window, len(lengths))), key=lambda at: lengths[at])
        batch: list[int] = []
        for at in ranked:
            if batch and (len(batch) == most_rows or lengths[at] * (len(batch) + 1) > TOKENS_A_BATCH):
                yield batch
                batch = []
            batch.append(at)
        if batch:
            yield batch
