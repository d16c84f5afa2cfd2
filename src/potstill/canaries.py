"""Canary questions: a few held-out questions with the answers that the exported file gave when it was verified.

They stand in the artifact's `verification.json` under each format's `canaries`. Whoever starts an engine on that file
asks them again before traffic: other answers mean another model, another build of the engine, or broken hardware.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.completers import Completion
from potstill.errors import ParityMismatch
from potstill.records import Example, Json, Message
from potstill.tasks import Task

VERIFICATION = "verification.json"
MOST = 4


@dataclass(frozen=True, slots=True)
class Canary:
    """One question as the model sees it, and the text that answered it greedily."""

    messages: list[Message]
    tools: list[Json]
    answer: str


def choose_canaries(examples: Sequence[Example], answered: Sequence[Completion], task: Task, most: int = MOST) -> Json:
    """The entry `canaries` of a verified format: valid answers, as different from each other as they come, short ones.

    Short questions since they are asked at every start. Empty when no answer was valid.
    """
    found: dict[str, Canary] = {}
    for example, completion in sorted(zip(examples, answered, strict=True), key=lambda both: _length(both[0])):
        if task.parse(completion.text, example.tools).valid:
            found.setdefault(completion.text, Canary(example.messages, example.tools, completion.text))
        if len(found) == most:
            break
    return {"canaries": [asdict(each) for each in found.values()]}


def read_canaries(folder: Path, format: str) -> tuple[Canary, ...]:
    """The canaries of one format, () where the artifact holds none; raises ParityMismatch for unreadable ones."""
    path = folder / VERIFICATION
    try:
        entry: Any = json.loads(path.read_text()).get(format) or {}
        return tuple(Canary(**each) for each in entry.get("canaries") or ())
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError, AttributeError) as fault:
        raise ParityMismatch(f"{path}: its canaries cannot be read ({fault}); export the adapter again") from fault


def _length(example: Example) -> int:
    return sum(len(str(each.get("content") or "")) for each in example.messages)
