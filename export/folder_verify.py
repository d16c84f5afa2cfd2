"""Whether an exported folder is the adapter that it claims to be: same template, same tokens, like answers, small KL.

What verify.py does for GGUF files, for folders: they answer through transformers, and since both sides give whole
distributions there, the divergence from the 16-bit student is measured too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill import chat, models
from potstill.completers import Completion
from potstill.completers.transformers import TransformersCompleter
from potstill.contract import Contract, Golden, first_difference
from potstill.engine_logits import RowDivergence
from potstill.errors import ParityMismatch
from potstill.progress import say, track
from potstill.records import Example, Json
from potstill.tasks import Task
from potstill.trained import find_trained, load_trained

from .verify import answers, requests_for

if TYPE_CHECKING:
    from .formats import Source
    from .measure import HeldOut

REFERENCE = "adapter, merged, bf16"


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


def measure(files: Mapping[str, Path], source: Source, rows: Sequence[Example], out: Path) -> dict[str, Json]:
    """Speed and divergence of every file, divergence alone of every folder: vLLM will serve it, on other hardware."""
    from .measure import held_out, measure_files

    folders = {name: path for name, path in files.items() if path.is_dir()}
    found = measure_files({name: path for name, path in files.items() if name not in folders}, source, rows, out)
    if folders:
        texts = held_out(chat.load_tokenizer(source.tokenizer), rows, source.contract.window)
        found |= measure_folders(folders, source, texts)
    return found


def measure_folders(folders: Mapping[str, Path], source: Source, texts: Sequence[HeldOut]) -> dict[str, Json]:
    """`divergence` of every folder from the 16-bit student, both by transformers."""
    from .measure import divergence_figures

    models.prepare_torch()
    student = load_trained(find_trained(source.trained, source.base))
    student.eval()
    found: dict[str, Json] = {}
    for name, folder in folders.items():
        model = models.load_float(folder)
        model.eval()
        compared = [divergence(student, model, each.tokens) for each in track(texts, f"{name} divergence", len(texts))]
        figures = divergence_figures(compared, texts)
        found[name] = {"divergence": {"reference": REFERENCE, **figures}}
        answer = figures["answer"]
        say(f"{name}: KL to 16 bits {answer['kl_mean']:.2g} nats a token, same likeliest {answer['same_top']:.1%}")
    return found


def divergence(student: Any, folder: Any, tokens: Sequence[int]) -> RowDivergence:
    """KL(student || folder) over the whole vocabulary at every position of a text, teacher-forced."""
    import torch

    ids = torch.tensor([list(tokens)], device=student.device)
    with torch.inference_mode():
        wanted, got = (model(input_ids=ids).logits[0].float().log_softmax(dim=-1) for model in (student, folder))
    lost = (wanted.exp() * (wanted - got)).sum(dim=-1).clamp(min=0).double()
    return RowDivergence(lost.cpu().numpy(), (wanted.argmax(dim=-1) == got.argmax(dim=-1)).cpu().numpy())
