"""Validation rows through the exported student, asked as the server asks it, with the log-probabilities of its tokens.

Greedy, constrained to what the task allows, through the engine that would serve it; a row that is not answered is told
apart from one that is answered wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from potstill.calibration.confidence import TOP
from potstill.completers.openai_form import llama_constraint
from potstill.errors import EngineFailure
from potstill.progress import track
from potstill.records import Example, Json
from potstill.serving.start import Served, start_engine

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Answered:
    """What the student said to one row: its text, and `logprobs.content`; both None where it did not answer."""

    id: str
    text: str | None
    content: list[Json] | None


def ask(
    served: Served, examples: Sequence[Example], *, constrained: bool = True, slots: int = 4, threads: int | None = None
) -> Iterator[Answered]:
    """One answer a row, in order, as they come; raises EngineFailure when the engine does not start or answers none."""
    engine = start_engine(served, slots=slots, threads=threads)
    answered = 0
    try:
        for each in track(_asked(served, engine.url, examples, constrained, slots), "asking", len(examples)):
            answered += each.text is not None
            yield each
    finally:
        engine.stop()
    if examples and not answered:
        raise EngineFailure(f"{served.model}: none of {len(examples)} validation rows was answered")


def _asked(served: Served, url: str, examples: Sequence[Example], constrained: bool, slots: int) -> Iterator[Answered]:
    import httpx

    with httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client, ThreadPoolExecutor(slots) as pool:

        def one(example: Example) -> Answered:
            try:
                reply = client.post("/v1/chat/completions", json=body_for(served, example, constrained=constrained))
                return read(example.id, served, reply.raise_for_status().json())
            except (httpx.HTTPError, ValueError):
                return Answered(example.id, None, None)

        yield from pool.map(one, examples)


def body_for(served: Served, example: Example, *, constrained: bool = True) -> Json:
    """What the server would ask the engine for this row, with log-probabilities."""
    contract = served.contract
    body: Json = {
        "messages": example.messages, "max_tokens": contract.max_tokens, "temperature": 0.0, "stop": contract.stop,
        "cache_prompt": True, "logprobs": True, "top_logprobs": TOP,
    }  # fmt: skip
    if example.tools:
        body["tools"] = example.tools
    return body | llama_constraint(served.task.constraint() if constrained else None)


def read(identity: str, served: Served, reply: Any) -> Answered:
    """The answer in a chat completion; a refusal where it holds none."""
    try:
        choice = reply["choices"][0]
        content = (choice.get("logprobs") or {}).get("content")
        return Answered(identity, served.task.text_of(choice["message"]), content)
    except (LookupError, TypeError, AttributeError):
        return Answered(identity, None, None)
