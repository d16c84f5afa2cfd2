"""The contract: what training, export and serving must agree on, written beside every adapter and artifact.

Chat template, stop tokens, task definition, prompt rule, and golden token ids (prompts with the ids that training
gave them). Whoever loads a model recomputes what it can and refuses a difference, naming it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import ParityMismatch
from potstill.manifest import write_atomically
from potstill.prompt import PromptRule
from potstill.records import Json, Message, canonical_json
from potstill.tasks import Task, task_from

CONTRACT = "contract.json"


@dataclass(frozen=True, slots=True)
class Golden:
    """One prompt of the training rows, rendered and tokenised as training did."""

    messages: list[Message]
    tools: list[Json]
    text: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Contract:
    """`max_tokens` bounds an answer (from the longest one trained on); `window` the prompt plus answer."""

    task: Json
    chat_template: str
    stop: list[str]
    prompt_rule: Json
    max_tokens: int
    window: int
    golden: list[Golden] = field(default_factory=list)

    def make_task(self) -> Task:
        return task_from(self.task)

    def make_prompt_rule(self) -> PromptRule:
        return PromptRule.from_json(self.prompt_rule)

    def write(self, folder: Path) -> None:
        write_atomically(folder / CONTRACT, json.dumps(asdict(self), indent=1, ensure_ascii=False).encode())

    @classmethod
    def read(cls, folder: Path) -> Contract:
        """Read `contract.json`; raises ParityMismatch when it is missing or unreadable."""
        path = folder / CONTRACT
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            data["golden"] = [Golden(**each) for each in data["golden"]]
            return cls(**data)
        except FileNotFoundError as fault:
            raise ParityMismatch(f"{path}: missing; export the adapter again") from fault
        except (ValueError, TypeError, KeyError) as fault:
            raise ParityMismatch(f"{path}: not a contract ({fault}); export the adapter again") from fault


def differences(expected: Contract, found: Contract) -> list[str]:
    """Each field in which two contracts differ, shown short; empty when they agree."""
    lines = []
    for name in ("task", "chat_template", "stop", "prompt_rule", "max_tokens", "window"):
        wanted, got = getattr(expected, name), getattr(found, name)
        if wanted != got:
            lines.append(f"{name}: {first_difference(_text(wanted), _text(got))}")
    if [golden.token_ids for golden in expected.golden] != [golden.token_ids for golden in found.golden]:
        lines.append("golden token ids differ")
    return lines


def golden_differences(contract: Contract, token_ids: Sequence[Sequence[int]]) -> list[str]:
    """Compare the ids that another tokenizer or engine gave for the golden prompts with training's own."""
    lines = []
    for at, (golden, found) in enumerate(zip(contract.golden, token_ids, strict=True)):
        if list(found) != golden.token_ids:
            where = next(
                (i for i, (a, b) in enumerate(zip(golden.token_ids, found, strict=False)) if a != b),
                min(len(golden.token_ids), len(found)),
            )
            lines.append(
                f"golden prompt {at}: {len(found)} tokens, expected {len(golden.token_ids)}; first difference at "
                f"token {where}: {list(found[where : where + 5])}, expected {golden.token_ids[where : where + 5]}"
            )
    return lines


def first_difference(expected: str, found: str, width: int = 40) -> str:
    """Where two texts part, with some of each."""
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
    )
    start = max(0, at - 10)
    return f"at character {at}: found {found[start : at + width]!r}, expected {expected[start : at + width]!r}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)
