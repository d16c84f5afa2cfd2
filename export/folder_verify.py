"""Whether an exported folder is the adapter that it claims to be: same template, same tokens, like answers, small KL.

What verify.py does for GGUF files, for folders: they answer through transformers, and since both sides give whole
distributions there, the divergence from the 16-bit student is measured too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill import chat, models
from potstill.completers import Completion
from potstill.completers.transformers import TransformersCompleter
from potstill.contract import Contract, Golden, first_difference
from potstill.errors import ParityMismatch
from potstill.progress import say, track
from potstill.records import Example
from potstill.tasks import Task
from potstill.trained import find_trained, load_trained

from .verify import answers, requests_for

KL_ROWS = 64


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(16-bit student || folder) in nats a token of the answers of `rows` rows: mean, and the largest row's mean.

    `top1` is the share of tokens where both sides' likeliest token is the same.
    """

    rows: int
    tokens: int
    mean: float
    largest_row: float
    top1: float


def verify_folder(
    folder: Path, contract: Contract, tokenizer: Any, examples: Sequence[Example], task: Task
) -> tuple[list[Completion], list[str]]:
    """The folder's answers to `examples`, and the rows whose prompt its tokenizer makes otherwise than `tokenizer`.

    Raises ParityMismatch before answering when the template or a golden prompt differs.
    """
    own = check_parity(folder, contract)
    prompts = [
        f"row {each.id}: {fault}"
        for each in examples
        for fault in prompt_differences([chat.golden(tokenizer, each.messages, each.tools)], own)
    ]
    completer = TransformersCompleter(folder, None, folder, name=folder.name)
    try:
        return answers(completer, requests_for(examples, contract, task), f"{folder.name} answers"), prompts
    finally:
        completer.close()


def check_parity(folder: Path, contract: Contract) -> Any:
    """The folder's tokenizer; raises ParityMismatch unless it has the contract's template and gives its golden ids."""
    tokenizer = chat.load_tokenizer(folder)
    if str(tokenizer.chat_template) != contract.chat_template:
        where = first_difference(contract.chat_template, str(tokenizer.chat_template))
        raise ParityMismatch(f"{folder.name}: chat template {where}; export the adapter again")
    faults = prompt_differences(contract.golden, tokenizer)
    if faults:
        raise ParityMismatch(
            f"{folder.name}: the tokenizer makes other prompts than training did: {'; '.join(faults)}; export again"
        )
    return tokenizer


def prompt_differences(golden: Sequence[Golden], tokenizer: Any) -> list[str]:
    """Where this tokenizer's text or tokens for golden prompts differ; empty when none do."""
    own = [chat.golden(tokenizer, each.messages, each.tools) for each in golden]
    faults = []
    for at, (wanted, got) in enumerate(zip(golden, own, strict=True)):
        if wanted.text != got.text:
            faults.append(f"golden prompt {at}: text {first_difference(wanted.text, got.text)}")
        elif wanted.token_ids != got.token_ids:
            faults.append(f"golden prompt {at}: {len(got.token_ids)} other tokens, expected {len(wanted.token_ids)}")
    return faults


def divergence(student: Any, folder: Any, tokenizer: Any, examples: Sequence[Example]) -> Divergence:
    """How far the folder's model is from the student's on the answers of up to KL_ROWS examples, teacher-forced."""
    import torch

    rows = examples[:KL_ROWS]
    means: list[float] = []
    total = same = tokens = 0.0
    with torch.inference_mode():
        for each in track(rows, "divergence", len(rows)):
            prompt, answer = chat.prompt_and_completion(tokenizer, each.messages, each.tools, each.answer)
            wanted, got = (_log_probabilities(model, prompt, answer) for model in (student, folder))
            lost = (wanted.exp() * (wanted - got)).sum(dim=-1)
            means.append(float(lost.mean()))
            total += float(lost.sum())
            same += float((wanted.argmax(dim=-1) == got.argmax(dim=-1)).sum())
            tokens += len(answer)
    return Divergence(len(rows), int(tokens), total / tokens, max(means), same / tokens)


def _log_probabilities(model: Any, prompt: list[int], answer: list[int]) -> Any:
    """Log-probabilities of the whole vocabulary at every token of the answer, (tokens, vocabulary) in float32."""
    import torch

    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1]
    return logits.float().log_softmax(dim=-1)


def divergences(folders: dict[str, Path], base: Path, trained: Path, rows: Sequence[Example]) -> dict[str, Divergence]:
    """The divergence of every folder from the 16-bit student on `rows`, by format."""
    models.prepare_torch()
    found = find_trained(trained, base)
    tokenizer = chat.load_tokenizer(found.tokenizer)
    student = load_trained(found)
    student.eval()
    measured = {}
    for name, folder in folders.items():
        model = models.load_float(folder)
        model.eval()
        measured[name] = divergence(student, model, tokenizer, rows)
        say(f"{name}: KL to the 16-bit student {measured[name].mean:.4f} nats a token")
    return measured
