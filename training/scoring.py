"""The task's own score on generated answers, while training: what the best checkpoint is chosen by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.completers import CompletionRequest
from potstill.completers.transformers import TransformersCompleter
from potstill.contract import Contract
from potstill.intervals import Resampling, Rows, estimate, paired_difference
from potstill.records import Example
from potstill.stage import Shared
from potstill.tasks.base import Metric

INTERVAL = Resampling(resamples=2000)  # a fifth of a report's: it is drawn at every evaluation


@dataclass(frozen=True, slots=True)
class Score:
    """The task's primary metric over `rows` generated answers, with a 95 % interval as reports have it.

    `parts` are the rows' components (`Task.score`), `conversations` what each belongs to.
    """

    value: float
    rows: int
    low: float | None = None
    high: float | None = None
    metric: Metric | None = None
    parts: Rows = ()
    conversations: tuple[str, ...] = ()

    def beyond_chance(self, before: Rows) -> int:
        """1 where this score is surely higher than that of other answers to the same rows, -1 where lower, else 0.

        Surely: the 95 % interval of the paired difference, as reports have it, does not hold 0.
        """
        if self.metric is None or len(before) != len(self.parts):
            return 0
        found = paired_difference(self.metric, self.parts, before, self.conversations, INTERVAL)
        return 0 if found is None else (found.low > 0) - (found.high < 0)


class Scorer:
    """Scores generated answers to a sample of the validation rows, the same each time and in every run on them."""

    def __init__(
        self, shared: Shared, model: Any, tokenizer: Any, examples: Sequence[Example], rows: int, contract: Contract
    ) -> None:
        self.task = shared.task()
        self.examples = sample(examples, rows)
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
        found = []
        for example, completion in zip(self.examples, completer.complete(self._requests), strict=True):
            parsed = self.task.parse(completion.text, example.tools)
            found.append(self.task.score(parsed.value, self.task.parse(example.answer, example.tools).value))
        self._model.train(was_training)
        metric, conversations = self.task.metrics[0], tuple(each.conversation for each in self.examples)
        made = estimate(metric, found, conversations, INTERVAL)
        return None if made is None else Score(made.value, made.n, made.low, made.high, metric, found, conversations)


def sample(examples: Sequence[Example], rows: int) -> list[Example]:
    """So many of the examples, in their order, drawn by their ids alone: whatever the seed, trials compare the same."""
    drawn = sorted(range(len(examples)), key=lambda at: hashlib.sha256(examples[at].id.encode()).digest())[:rows]
    return [examples[at] for at in sorted(drawn)]
