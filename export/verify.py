"""Whether an exported file is the adapter that it claims to be: same template, same tokens, same answers.

A different template or token is refused outright. Answers may differ where rounding tips a near tie; their share is
given with its Wilson interval, and the file is refused only when even the lower end exceeds the limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from potstill import chat
from potstill.canaries import choose_canaries
from potstill.completers import Completer, Completion, CompletionRequest
from potstill.completers.llama_cpp import LlamaCppCompleter
from potstill.contract import Contract, first_difference, golden_differences
from potstill.engine import Engine
from potstill.errors import ParityMismatch, PotstillError
from potstill.intervals import wilson
from potstill.manifest import write_atomically
from potstill.models import read_gguf_field
from potstill.progress import say, track
from potstill.records import Example, Json
from potstill.tasks import Task

VERIFICATION = "verification.json"
PARALLEL = 4


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a file answered as the adapter did: `share` of `rows` with its 95 % Wilson interval.

    `both_invalid` of the equal rows are answers that the task calls invalid from either side. `differing` holds the
    other rows: id and both texts.
    """

    rows: int
    equal: int
    share: float
    low: float
    high: float
    both_invalid: int
    differing: list[Json]


def verify_file(
    file: Path, contract: Contract, tokenizer: Any, examples: Sequence[Example], task: Task
) -> tuple[list[Completion], list[str]]:
    """The file's answers to `examples`, and the rows whose prompt the engine makes otherwise than training would.

    Raises ParityMismatch before answering when the template or a golden prompt differs.
    """
    check_template(file, contract)
    own = [chat.golden(tokenizer, each.messages, each.tools) for each in examples]
    longest = max(len(each.token_ids) for each in own) + contract.max_tokens
    completer = LlamaCppCompleter(file, parallel=PARALLEL, context=max(contract.window, longest))
    try:
        check_golden(completer.engine, contract)
        prompts = [
            f"row {example.id}: {fault}"
            for example, wanted in zip(examples, own, strict=True)
            for fault in prompt_differences(completer.engine, replace(contract, golden=[wanted]))
        ]
        return answers(completer, requests_for(examples, contract, task), f"{file.name} answers"), prompts
    finally:
        completer.close()


def check_template(file: Path, contract: Contract) -> None:
    """Raise ParityMismatch unless the file holds exactly the contract's chat template."""
    found = str(read_gguf_field(file, "tokenizer.chat_template"))
    if found != contract.chat_template:
        raise ParityMismatch(
            f"{file.name}: chat template {first_difference(contract.chat_template, found)}; export the adapter again"
        )


def check_golden(engine: Engine, contract: Contract) -> None:
    """Raise ParityMismatch unless the engine gives the golden prompts the text and tokens that training gave them."""
    faults = prompt_differences(engine, contract)
    if faults:
        raise ParityMismatch(
            f"{engine.model.name}: the engine makes other prompts than training did: {'; '.join(faults)}. The "
            "tokenizer or the template does not survive the export; train with a plainer template"
        )


def prompt_differences(engine: Engine, contract: Contract) -> list[str]:
    """Where the engine's text or tokens for the golden prompts differ from training's; empty when none do."""
    texts = [engine.apply_template(golden.messages, golden.tools) for golden in contract.golden]
    faults = [
        f"golden prompt {at}: text {first_difference(golden.text, text)}"
        for at, (golden, text) in enumerate(zip(contract.golden, texts, strict=True))
        if text != golden.text
    ]
    return faults or golden_differences(contract, [engine.tokenize(text) for text in texts])


def requests_for(examples: Sequence[Example], contract: Contract, task: Task) -> list[CompletionRequest]:
    """One greedy request an example, as a service would send it.

    Only a choice among labels constrains it: transformers keeps no JSON schema, and a grammar on one side alone
    would be a difference that is not the file's.
    """
    constraint = task.constraint()
    if constraint is not None and constraint.kind != "choices":
        constraint = None
    return [
        CompletionRequest(
            id=each.id,
            messages=each.messages,
            tools=each.tools,
            max_tokens=contract.max_tokens,
            stop=tuple(contract.stop),
            constraint=constraint,
        )
        for each in examples
    ]


def answers(completer: Completer, requests: Sequence[CompletionRequest], what: str) -> list[Completion]:
    """The completer's answers in the order of the requests; raises PotstillError when any request failed."""
    found = list(track(completer.complete(requests), what, len(requests)))
    failed = [each for each in found if each.error is not None]
    if failed or len(found) != len(requests):
        first = f"; the first: {failed[0].id}: {failed[0].error}" if failed else ""
        raise PotstillError(f"{what}: {len(requests) - len(found) + len(failed)} of {len(requests)} failed{first}")
    return found


def compare(
    adapter: Sequence[Completion], file: Sequence[Completion], examples: Sequence[Example], task: Task
) -> Agreement:
    """Parsed answers of both sides, row by row: equal when the values are, or when both are invalid."""
    both_invalid = 0
    differing: list[Json] = []
    for wanted, got, example in zip(adapter, file, examples, strict=True):
        left, right = task.parse(wanted.text, example.tools), task.parse(got.text, example.tools)
        if not left.valid and not right.valid:
            both_invalid += 1
        elif left.valid != right.valid or left.value != right.value:
            differing.append({"id": example.id, "adapter": wanted.text, "file": got.text})
    rows = len(examples)
    equal = rows - len(differing)
    low, high = wilson(equal, rows)
    return Agreement(rows, equal, equal / rows, low, high, both_invalid, differing)


def where_equal(
    examples: Sequence[Example], file: Sequence[Completion], adapter: Sequence[Completion], task: Task
) -> tuple[list[Example], list[Completion]]:
    """The rows that file and adapter answer alike, with the file's answers: no rounding decided these."""
    same = [
        (example, got)
        for example, got, wanted in zip(examples, file, adapter, strict=True)
        if task.parse(got.text, example.tools).value == task.parse(wanted.text, example.tools).value
    ]
    return [each for each, _ in same], [each for _, each in same]


def refuse_other_answers(name: str, agreement: Agreement, max_mismatch_share: float) -> None:
    """Raise PotstillError when the share of differing answers exceeds the limit by more than chance explains."""
    if 1.0 - agreement.high > max_mismatch_share:
        raise PotstillError(
            f"{name}: {len(agreement.differing)} of {agreement.rows} answers differ from the adapter's "
            f"(95 % interval {1 - agreement.high:.3f} to {1 - agreement.low:.3f}), allowed is {max_mismatch_share}; "
            f"see {VERIFICATION} for the rows; export gguf-f16 to tell rounding from a fault in the export"
        )


def write_verification(
    out: Path,
    contract: Contract,
    found: dict[str, Agreement],
    prompts: dict[str, list[str]],
    canaries: Mapping[str, Json],
) -> Json:
    """Write verification.json, with the questions that a server asks again; returns its short form (no texts)."""
    shared: Json = {"chat_template": "equal", "golden_prompts": len(contract.golden)}
    whole: Json = {
        name: {**shared, "prompts_differing": prompts[name], **asdict(agreement)} for name, agreement in found.items()
    }
    written = {name: entry | canaries.get(name, {}) for name, entry in whole.items()}
    write_atomically(out / VERIFICATION, json.dumps(written, indent=1, ensure_ascii=False).encode())
    short: dict[str, Any] = {
        name: {**entry, "prompts_differing": len(prompts[name]), "differing": len(entry["differing"])}
        for name, entry in whole.items()
    }
    return short


def verify_files(
    files: Mapping[str, Path],
    base: Path,
    adapter: Path,
    contract: Contract,
    rows: Sequence[Example],
    limit: float,
    out: Path,
) -> Json:
    """Verify every file against the adapter on `rows`, write verification.json, then refuse what disagrees.

    Cheap first: parity and the files' answers come before the adapter is loaded. Returns the short form for facts.
    """
    from potstill.completers.transformers import TransformersCompleter

    from .folder_verify import verify_folder

    task = contract.make_task()
    tokenizer = chat.load_tokenizer(adapter / "tokenizer")
    checked = {
        name: (verify_folder if file.is_dir() else verify_file)(file, contract, tokenizer, rows, task)
        for name, file in files.items()
    }
    completer = TransformersCompleter.student(adapter, base)
    try:
        wanted = answers(completer, requests_for(rows, contract, task), "adapter answers")
    finally:
        completer.close()
    agreements = {name: compare(wanted, found, rows, task) for name, (found, _) in checked.items()}
    canaries = {
        name: choose_canaries(*where_equal(rows, found, wanted, task), task) for name, (found, _) in checked.items()
    }
    short = write_verification(
        out, contract, agreements, {name: prompts for name, (_, prompts) in checked.items()}, canaries
    )
    for name, agreement in agreements.items():
        say(f"{name}: {agreement.equal} of {agreement.rows} answers equal the adapter's")
        refuse_other_answers(name, agreement, limit)
    return short
