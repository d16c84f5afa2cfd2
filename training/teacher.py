"""An open model as teacher: found, loaded, and asked for its distributions over the answers' tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill import chat
from potstill.logprobs import AnswerLogprobs, TokenLogprobs
from potstill.manifest import read_manifest
from potstill.models import resolve_base
from potstill.progress import say
from potstill.records import Example
from potstill.trained import Trained, find_trained, load_trained

from .alignment import Vocabulary
from .batch import Batch, token_scores
from .distil import is_adapter, teacher_input
from .packing import Unit, micro_batches
from .parity import refuse_unlike
from .rows import Row
from .soft_targets import SoftTargets, draw, stack


@dataclass(frozen=True, slots=True)
class Teacher:
    """Where a teacher's weights are: a base, and the folder of an adapter trained on it. `digest` stands for both."""

    base: Path
    adapter: Path | None
    digest: str

    @property
    def tokenizer(self) -> Any:
        return chat.load_tokenizer(self.base if self.adapter is None else self.adapter / "tokenizer")

    def load(self) -> Any:
        """The model, frozen, in bf16."""
        found = Trained(self.base, None, self.base) if self.adapter is None else find_trained(self.adapter, self.base)
        model = load_trained(found)
        return model.eval().requires_grad_(False)


def resolve_teacher(spec: str, cache: Path) -> Teacher:
    """Find the teacher that a recipe names: a model, or the folder of a trained adapter."""
    digest = teacher_input(spec).digest
    if not is_adapter(spec):
        return Teacher(resolve_base(spec, cache).path, None, digest)
    base = read_manifest(Path(spec), "adapter").facts["base"]
    return Teacher(resolve_base(str(base["spec"]), cache).path, Path(spec), digest)


def asked_in_full(rows: Sequence[Row], examples: Sequence[Example], tokenizer: Any) -> list[Row]:
    """The rows with the teacher's own prompt (all instructions, its template) before the student's answer tokens.

    Both share a vocabulary. Whole conversations are the very rows given: their turns are learnt from inside.
    """
    by_id = {each.id: each for each in examples}
    made, shortened = [], 0
    for row in rows:
        example = by_id[row.id]
        if example.learn == "conversation":
            made.append(row)
            shortened += example.full_messages != example.messages
            continue
        prompt = chat.encode(tokenizer, chat.render(tokenizer, example.full_messages, example.tools))
        shift, start = len(prompt) - row.learnt[0][0], row.learnt[0][0]
        spans = tuple((first + shift, end + shift) for first, end in row.learnt)
        made.append(Row(row.id, [*prompt, *row.token_ids[start:]], spans))
    if shortened:
        say(
            f"train.distil.prompt: the teacher reads {shortened:,} whole conversations as the student does, not in full"
        )
    return made


@torch.no_grad()
def each_distribution(
    model: Any, rows: Sequence[Row], micro_tokens: int, take: Callable[[Row, Tensor], None], temperature: float = 1.0
) -> None:
    """Call `take` with every row and its log-probabilities [n, V] over its n learnt tokens, row by row."""
    refuse_unlike(model, rows, "train.distil.teacher")
    units = [Unit(row.id, (row,)) for row in rows]
    device = str(next(model.parameters()).device)
    for micro in micro_batches(units, micro_tokens):
        batch = Batch.of(micro, device)
        parts: list[Tensor] = []

        def keep(logits: Tensor, batch: Batch, at: slice, parts: list[Tensor] = parts) -> Tensor:
            parts.append(torch.log_softmax(logits / temperature, 1))
            return logits.new_zeros(len(logits))

        token_scores(model, batch, keep)
        by_row = torch.split(torch.cat(parts), [unit.rows[0].supervised_tokens for unit in micro])
        for unit, found in zip(micro, by_row, strict=True):
            take(unit.rows[0], found)


def seeded(seed: int, what: str) -> torch.Generator:
    """A generator that depends on nothing but the seed and a name."""
    digest = hashlib.sha256(f"{seed}/{what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def drawn_targets(
    model: Any,
    rows: Sequence[Row],
    micro_tokens: int,
    *,
    head: int,
    draws: int,
    proposal: float,
    temperature: float,
    seed: int,
) -> SoftTargets:
    """Soft targets of every learnt token of the rows, in order; what is drawn depends on a row's id and the seed."""
    found: list[SoftTargets] = []

    def take(row: Row, log_probs: Tensor) -> None:
        generator = seeded(seed, row.id)
        found.append(draw(log_probs.cpu(), head=head, draws=draws, generator=generator, proposal=proposal))

    each_distribution(model, rows, micro_tokens, take, temperature)
    return stack(found)


def written_logprobs(
    model: Any, tokenizer: Any, examples: Sequence[Example], micro_tokens: int, head: int
) -> dict[str, AnswerLogprobs]:
    """What a teacher of another vocabulary thinks of the answers, in its own tokens, as a service would log it."""
    vocabulary = Vocabulary.of(tokenizer)
    rows = []
    for example in examples:
        prompt, answer = chat.prompt_and_completion(tokenizer, example.full_messages, example.tools, example.answer)
        rows.append(Row(example.id, prompt + answer, ((len(prompt), len(prompt) + len(answer)),)))
    found: dict[str, AnswerLogprobs] = {}

    def take(row: Row, log_probs: Tensor) -> None:
        best = log_probs.topk(min(head, log_probs.shape[1]), 1)
        start, end = row.learnt[0]
        tokens = []
        for at, token in enumerate(row.token_ids[start:end]):
            named = [
                (vocabulary.text(each), value)
                for each, value in zip(best.indices[at].tolist(), best.values[at].tolist(), strict=True)
            ]
            top = tuple((text, value) for text, value in named if text)
            tokens.append(TokenLogprobs(vocabulary.text(token) or b"", float(log_probs[at, token]), top))
        found[row.id] = AnswerLogprobs(row.id, 0, tuple(tokens))

    each_distribution(model, rows, micro_tokens, take)
    return found
