"""The task's own score on generated answers, while training: what the best checkpoint is chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.completers import CompletionRequest
from potstill.completers.transformers import TransformersCompleter
from potstill.contract import Contract
from potstill.intervals import wilson
from potstill.records import Example
from potstill.stage import Shared


@dataclass(frozen=True, slots=True)
class Score:
    """The task's primary metric over `rows` generated answers; a 95 % interval (Wilson) where it is a rate of rows."""

    value: float
    rows: int
    low: float | None = None
    high: float | None = None


class Scorer:
    """Scores generated answers to the first validation rows (chosen once, the same each time)."""

    def __init__(
        self, shared: Shared, model: Any, tokenizer: Any, examples: Sequence[Example], rows: int, contract: Contract
    ) -> None:
        self.task = shared.task()
        self.examples = list(examples)[:rows]
        self._model, self._tokenizer = model, tokenizer
        self._requests = [
            CompletionRequest(
                e.id, e.messages, e.tools, max_tokens=contract.max_tokens, constraint=self.task.constraint()
            )
            for e in self.examples
        ]

    def __call__(self) -> Score | None:
        """The score in [0, 1], None without validation rows."""
        if not self.examples:
            return None
        was_training = self._model.training
        self._model.eval()
        completer = TransformersCompleter.around(self._model, self._tokenizer)
        metric = self.task.metrics[0]
        above = below = 0.0
        for example, completion in zip(self.examples, completer.complete(self._requests), strict=True):
            parsed = self.task.parse(completion.text, example.tools)
            row = self.task.score(parsed.value, self.task.parse(example.answer, example.tools).value)
            above += sum(weight * row[name] for name, weight in metric.numerator.items())
            below += sum(weight * row[name] for name, weight in metric.denominator.items()) if metric.denominator else 1
        self._model.train(was_training)
        if not below:
            return None
        if metric.denominator or not above.is_integer():
            return Score(above / below, len(self.examples))
        low, high = wilson(int(above), len(self.examples))
        return Score(above / below, len(self.examples), low, high)
