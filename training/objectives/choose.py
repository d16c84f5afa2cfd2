"""The objective that a recipe names, made for its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill import chat
from potstill.dataset import read_examples
from potstill.errors import ParityMismatch, RecipeError
from potstill.logprobs import read_logprobs
from potstill.records import Example
from potstill.stage import Shared

from ..alignment import same_vocabulary
from ..forecast import CPU_MICRO_TOKENS
from ..packing import Unit
from ..teacher import Teacher, asked_in_full, resolve_teacher
from . import Objective
from .answers import Answers
from .logits import Logits
from .on_policy import OnPolicy, Writing
from .targets import Asked, Logged

if TYPE_CHECKING:
    from ..run import Settings


def first_objective(
    settings: Settings, shared: Shared, dataset: Path, tokenizer: Any, units: Sequence[Unit], held: Sequence[Unit]
) -> Objective:
    """What `train.objective` minimises: sft, logits or on_policy."""
    distil = settings.distil
    if settings.objective == "sft":
        return Answers(units)
    examples = [*read_examples(dataset, "train"), *read_examples(dataset, "validation")]
    if distil.teacher is None:
        logged = read_logprobs(dataset, "train") | read_logprobs(dataset, "validation")
        if not logged:
            raise RecipeError(
                [
                    f"train.objective: {settings.objective} needs a teacher's probabilities, and {dataset.name} holds "
                    "none: log the traffic with top_logprobs, or name an open model in train.distil.teacher"
                ]
            )
        source = Logged(logged, tokenizer, least_usable=distil.least_usable)
        return Logits(units, source, share=distil.share, temperature=1.0)
    teacher = resolve_teacher(distil.teacher, shared.cache_dir)
    if settings.objective == "on_policy":
        return _on_policy(settings, teacher, tokenizer, [*units, *held], examples, units)
    asked = Asked(
        teacher, distil, tokenizer, examples, micro_tokens=settings.micro_tokens or CPU_MICRO_TOKENS, seed=settings.seed
    )
    return Logits(units, asked, share=distil.share, temperature=distil.temperature)


def _on_policy(
    settings: Settings,
    teacher: Teacher,
    tokenizer: Any,
    everything: Sequence[Unit],
    examples: Sequence[Example],
    units: Sequence[Unit],
) -> OnPolicy:
    own, distil = teacher.tokenizer, settings.distil
    if not same_vocabulary(tokenizer, own):
        raise ParityMismatch(
            f"train.distil.teacher: {distil.teacher} has another vocabulary than the student, whose every token it "
            "would have to judge; take a teacher of the student's family, or objective: logits"
        )
    rows = [row for unit in everything for row in unit.rows]
    prompts = {}
    if distil.prompt == "full" or (distil.prompt == "auto" and teacher.adapter is None):
        both = zip(rows, asked_in_full(rows, examples, own), strict=True)
        prompts = {row.id: asked.token_ids[: asked.learnt[0][0]] for row, asked in both if asked is not row}
    longest = max(row.longest_turn for row in rows)
    writing = Writing(
        generated=distil.generated,
        temperature=distil.sampling_temperature,
        longest=longest + max(8, longest // 4),
        end=tokenizer.convert_tokens_to_ids(chat.end_of_turn(tokenizer)),
        pad=tokenizer.pad_token_id,
    )
    return OnPolicy(
        units, teacher.load, writing, share=distil.share, beta=distil.beta, seed=settings.seed, prompts=prompts
    )
