"""What comes with an answer and is not it: the reasoning before it, and the log-probabilities of its tokens.

Reasoning stands in `reasoning_content` or `reasoning` of the answer's message, or in `<think>...</think>` at the start
of its content (as open models write it); the latter is moved to the former, so that the answer alone is judged.
Log-probabilities spell the answer once more, in pieces that no rule of redaction can read: they leave the exchange
before it is redacted, and are kept only where redaction finds nothing in the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from potstill.errors import DamagedLine
from potstill.logprobs import AnswerLogprobs, read_content
from potstill.records import Exchange, Json, Message

if TYPE_CHECKING:
    import pyarrow as pa

FIELDS = ("reasoning_content", "reasoning")
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def rationale_of(message: Message) -> str | None:
    """The reasoning that stands beside an answer, None where there is none."""
    said = (message.get(name) for name in FIELDS)
    return next((each.strip() for each in said if isinstance(each, str) and each.strip()), None)


def without_thought(message: Message) -> Message:
    """The message with a leading `<think>` block of its content moved to `reasoning_content`; itself without one."""
    content = message.get("content")
    if not isinstance(content, str) or "<think>" not in content:
        return message
    found = _THINK.match(content)
    if found is None:
        return message
    thought = found.group(1).strip()
    moved = {**message, "content": content[found.end() :]}
    return moved | {"reasoning_content": rationale_of(message) or thought} if thought else moved


def set_apart(exchange: Exchange, text: str | None) -> tuple[Exchange, str | None, str | None]:
    """The exchange without log-probabilities and with reasoning beside its answer; its JSON where that still holds it;
    and the log-probabilities of its (first) answer as JSON.

    Most exchanges have neither: they come back as they are.
    """
    choices = exchange.response["choices"]
    made = [_choice(each) for each in choices]
    if all(one is other for one, other in zip(made, choices, strict=True)):
        return exchange, text, None
    import orjson

    found = choices[0].get("logprobs")
    content = found.get("content") if isinstance(found, dict) else None
    kept = orjson.dumps(content).decode() if content else None
    return replace(exchange, response={**exchange.response, "choices": made}), None, kept


def _choice(choice: Json) -> Json:
    message = choice.get("message")
    said = without_thought(message) if isinstance(message, dict) else message
    if said is message and choice.get("logprobs") is None:
        return choice
    return {name: each for name, each in choice.items() if name not in ("message", "logprobs")} | {"message": said}


def still_said(
    logged: Sequence[str | None], before: pa.Array, after: pa.Array, counts: Counter[str]
) -> list[str | None]:
    """The log-probabilities of the exchanges whose answer redaction left as it was; what it did not is counted."""
    import orjson

    kept = list(logged)
    for at, each in enumerate(logged):
        if each is None:
            continue
        was, now = before[at].as_py(), after[at].as_py()
        if was != now and _answer(orjson.loads(was)) != _answer(orjson.loads(now)):
            kept[at] = None
            counts["logprobs: personal data in the answer"] += 1
    return kept


def _answer(exchange: Json) -> Any:
    return exchange["response"]["choices"][0]["message"]


def learnt_logprobs(rows: Iterable[tuple[str, str, str]], counts: Counter[str]) -> list[AnswerLogprobs]:
    """Of (id, canonical answer, log-probabilities as JSON) those whose tokens spell the answer; the rest is counted."""
    import orjson

    found = []
    for identity, answer, content in rows:
        try:
            tokens = read_content(orjson.loads(content))
        except DamagedLine:
            counts["logprobs: damaged"] += 1
            continue
        start = _start(b"".join(each.token for each in tokens), answer.encode())
        if start is None:
            counts["logprobs: other tokens than the answer's"] += 1
            continue
        found.append(AnswerLogprobs(identity, start, tokens))
    counts["logprobs"] += len(found)
    return found


def _start(written: bytes, answer: bytes) -> int | None:
    """Where the answer begins in what was written: at its end (reasoning may stand before it), or in one place only."""
    if written.rstrip().endswith(answer):
        return len(written.rstrip()) - len(answer)
    return written.find(answer) if written.count(answer) == 1 else None
