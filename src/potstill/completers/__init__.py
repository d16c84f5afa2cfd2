"""One protocol for everything that answers a prompt, whether a server, a local model or a recording.

`complete` takes a batch and yields one Completion a request **in the order of the requests**, each as soon
as it and all before it are done (so progress can be shown and partial work kept). A request that fails
yields a Completion with `error` set; it never takes the batch down with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from potstill.records import Json, Message
from potstill.tasks.base import Constraint


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One prompt in OpenAI form. `max_tokens` bounds the answer; temperature 0 means greedy.

    `logprobs` asks for `Completion.confidence`, where the completer can tell it.
    """

    id: str
    messages: list[Message]
    tools: list[Json] = field(default_factory=list)
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. `text` is the assistant turn's canonical text; `latency_ms` is wall time of the request.

    `confidence` is the probability that the model gives the whole answer, before any constraint narrows it.
    """

    id: str
    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_ms: float | None = None
    message: Message | None = None
    error: str | None = None
    confidence: float | None = None


class Completer(Protocol):
    """Something that answers prompts. `name` is what reports call it."""

    name: str

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]: ...

    def close(self) -> None: ...
