"""On-policy distillation: the student writes, the teacher says at every token what it would have written.

Generalised knowledge distillation (Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from
Self-Generated Mistakes", ICLR): with probability `generated` a step's answers are the student's own samples, else the
dataset's; the loss is the generalised Jensen-Shannon divergence between the two distributions over the whole
vocabulary. What a step draws is a function of the seed, its number and the weights, so that a resumed run draws the
same. TRL's DistillationTrainer does the same on its own data loader, whose position a checkpoint does not hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.records import Json

from ..batch import Batch, target_log_probs, token_scores
from ..packing import Unit
from ..parity import refuse_unlike
from ..rows import Row
from .answers import Answers


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """[n]: generalised Jensen-Shannon divergence of log-probabilities [n, V] (Agarwal et al. 2024, equation 1).

    beta KL(teacher | M) + (1 - beta) KL(student | M), M = beta teacher + (1 - beta) student; in its limits the forward
    (beta 0) and the reverse (beta 1) Kullback-Leibler divergence.
    """
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixed = torch.logaddexp(teacher + log(beta), student + log(1 - beta))
    return beta * _kl(teacher, mixed) + (1 - beta) * _kl(student, mixed)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(1)


@dataclass(frozen=True, slots=True)
class Writing:
    """How the student writes answers; lengths in tokens."""

    generated: float
    temperature: float
    longest: int
    end: int
    pad: int


class OnPolicy(Answers):
    """Objective `on_policy`. The teacher shares the student's vocabulary and stays in memory."""

    name = "on_policy"

    def __init__(
        self,
        units: Sequence[Unit],
        load: Callable[[], Any],
        writing: Writing,
        *,
        share: float,
        beta: float,
        seed: int,
        prompts: Mapping[str, list[int]] | None = None,
    ) -> None:
        """`prompts`: the teacher's own prompt of each row by id, where it is asked with another than the student.

        A prompt ends where the row's only answer begins; a conversation, whose turns are learnt from inside, has none.
        """
        super().__init__(units)
        self.load, self.writing, self.share, self.beta, self.seed = load, writing, share, beta, seed
        self.prompts = prompts or {}
        self.facts: Json = {}
        self._teacher: Any = None
        self._of: tuple[Batch, Tensor] | None = None
        self._source: dict[str, str] = {}  # id of the row that a generated one was made of

    def prepare(self, model: Any, units: Sequence[Unit], folder: Path) -> None:
        """Load the teacher."""
        with torch.random.fork_rng():
            self._teacher = self.load()
        refuse_unlike(self._teacher, [row for unit in units for row in unit.rows], "train.distil.teacher")

    def generate(self, model: Any, units: Sequence[Unit], step: int) -> list[Unit]:
        """The units of a step as they are learnt from: as they stand, or with answers that the student wrote."""
        if random.Random(f"{self.seed}/{step}").random() >= self.writing.generated:
            return list(units)
        rows = [row for unit in units for row in unit.rows]
        prompts = [row.token_ids[: row.answer[0]] for row in rows]
        devices = [model.device.index or 0] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(random.Random(f"{self.seed}/{step}/answers").getrandbits(60))
            answers = write_answers(model, prompts, self.writing)
        made = []
        self._source = {}
        for row, prompt, answer in zip(rows, prompts, answers, strict=True):
            identity = f"{row.id}@{step}"
            self._source[identity] = row.id
            span = (len(prompt), len(prompt) + len(answer))
            made.append(Unit(identity, (Row(identity, prompt + answer, (span,), row.weight),)))
        return made

    def scores(self, logits: Tensor, batch: Batch, at: slice) -> Tensor:
        """[n]: less the loss of each learnt token; the student's own tokens are no labels."""
        student = torch.log_softmax(logits, 1)
        soft = -divergence(student, torch.log_softmax(self._teacher_logits(batch)[at].float(), 1), self.beta)
        own = torch.tensor([row.id in self._source for unit in batch.units for row in unit.rows], device=soft.device)
        mixed = self.share * soft + (1 - self.share) * target_log_probs(logits, batch, at)
        return torch.where(own[batch.row_of[at]], soft, mixed)

    def _teacher_logits(self, batch: Batch) -> Tensor:
        """[N, V] of a batch, in bf16: they are kept until the backward pass is through."""
        if self._of is None or self._of[0] is not batch:
            asked = Batch.of(
                [Unit(unit.id, tuple(map(self._asked, unit.rows))) for unit in batch.units], str(batch.input_ids.device)
            )
            parts: list[Tensor] = []

            def keep(logits: Tensor, _: Batch, __: slice) -> Tensor:
                parts.append(logits.to(torch.bfloat16))
                return logits.new_zeros(len(logits))

            with torch.no_grad():
                token_scores(self._teacher, asked, keep)
            self._of = batch, torch.cat(parts)
        return self._of[1]

    def _asked(self, row: Row) -> Row:
        """The row as the teacher sees it."""
        prompt = self.prompts.get(self._source.get(row.id, row.id))
        if prompt is None:
            return row
        start = row.learnt[0][0]
        shift = len(prompt) - start
        spans = tuple((first + shift, end + shift) for first, end in row.learnt)
        return Row(row.id, [*prompt, *row.token_ids[start:]], spans, row.weight)


@torch.no_grad()
def write_answers(model: Any, prompts: Sequence[list[int]], writing: Writing) -> list[list[int]]:
    """Sampled answers, each with its end where it came to one. Empty prompts are not asked for."""
    was_training = model.training
    model.eval()
    width = max(map(len, prompts))
    ids = torch.tensor([[writing.pad] * (width - len(each)) + each for each in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=model.device)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=writing.longest,
        do_sample=True,
        temperature=writing.temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=writing.end,
        pad_token_id=writing.pad,
    )
    model.train(was_training)
    found = [each[width:].tolist() for each in out]
    return [each[: each.index(writing.end) + 1] if writing.end in each else each for each in found]
