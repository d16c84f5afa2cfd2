"""A request to a teacher as it goes out: its body, the hash that names it, the most that it can cost."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.completers import CompletionRequest
from potstill.completers.openai_form import chat_body
from potstill.records import Json, Message, canonical_json
from potstill.tasks.base import Constraint

from .ledger import Paid
from .settings import Price, Relabel, Teacher

# Beyond a token a byte: what chat templates put around a message, and around the whole.
TOKENS_A_MESSAGE, TOKENS_A_PROMPT = 16, 64


@dataclass(frozen=True, slots=True)
class Ask:
    """`key` names body and sample number; `worst` is in picodollars; `tokens` is what rate limits count."""

    key: str
    body: Json
    worst: int
    tokens: int


def ask_for(
    settings: Relabel,
    teacher: Teacher,
    messages: Sequence[Message],
    *,
    tools: Sequence[Json] = (),
    constraint: Constraint | None = None,
    temperature: float | None,
    sample: int = 0,
) -> Ask:
    """The request for one sample."""
    request = CompletionRequest(
        "", list(messages), list(tools), teacher.max_tokens, temperature or 0.0, constraint=constraint
    )
    body = chat_body(request, teacher.model, "openai")
    if settings.temperature is None:
        del body["temperature"]
    body[teacher.limit_field] = body.pop("max_tokens")
    key = hashlib.sha256(f"{canonical_json(body)}\n{sample}".encode()).hexdigest()
    spoken = {name: body[name] for name in ("messages", "tools", "response_format") if name in body}
    size = len(canonical_json(spoken).encode())
    # Tokenizers of large models fall back to bytes, so no text has more tokens than bytes: a true upper bound.
    most = size + TOKENS_A_MESSAGE * len(messages) + TOKENS_A_PROMPT
    worst = cost_of(teacher.price, most, teacher.max_tokens, discount_of(settings))
    return Ask(key, body, worst, size // 4 + teacher.max_tokens)


def discount_of(settings: Relabel) -> float:
    return settings.batch_discount if settings.batch else 1.0


def cost_of(price: Price, prompt_tokens: int, completion_tokens: int, discount: float) -> int:
    """Picodollars, rounded up."""
    return math.ceil((prompt_tokens * price.input + completion_tokens * price.output) * 1e6 * discount)


def paid_for(ask: Ask, teacher: Teacher, discount: float, status: int, text: str) -> Paid | None:
    """What an answer costs; None when it was not billed.

    A success without readable usage counts at its worst case: it was generated, and nobody said for how much.
    An error was billed only if it says so by naming its usage.
    """
    try:
        usage = json.loads(text).get("usage") or {}
        prompt, completion = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return Paid(status, text, ask.worst) if 200 <= status < 300 else None
    return Paid(status, text, cost_of(teacher.price, prompt, completion, discount), prompt, completion)
