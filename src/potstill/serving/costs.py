"""What a call cost, what it may come to at most, and what it saved; US dollars, by the prices in the settings.

Bounds count a token a byte: every token of a byte-level vocabulary stands for at least one byte, so no text has more
tokens than bytes (Sennrich et al. 2016, and byte-level BPE since GPT-2). What the template adds is bounded a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from potstill.records import Json, canonical_json
from potstill.serving.prices import PriceSettings

if TYPE_CHECKING:
    from potstill.serving.call import Asked, Call
    from potstill.serving.settings import ServeSettings

_OF_STUDENT = ("student", "repair")
_OF_LARGE = ("large", "sample", "hedge")
_TEMPLATE_TOKENS, _MESSAGE_TOKENS = 64, 16
# What asking for a repair adds to a prompt, beside the answer that is to be repaired.
_REPAIR_TOKENS = 512


def cost_of(call: Call, settings: ServeSettings) -> float:
    """The cost of everything that was asked for this call; what has no usage counts at its bound."""
    return sum(_cost_of_one(each, call, settings) for each in call.asked)


def saved_usd(call: Call, settings: ServeSettings) -> float:
    """What the baseline would have cost for this answer, less what it cost; 0 where no baseline has a price."""
    baseline = settings.prices.baseline or (settings.large.price if settings.large else None)
    if baseline is None:
        return 0.0
    return baseline.cost_usd(call.response.get("usage") or {}) - cost_of(call, settings)


def tokens_of(call: Call, settings: ServeSettings) -> int:
    """Tokens of everything that was asked for this call, prompts and answers; bounds where usage is unknown."""
    return sum(_tokens_of_one(each, call, settings) for each in call.asked)


@dataclass(frozen=True, slots=True)
class Most:
    """What a call can come to at most: every model that its way may ask, each as often as it may, at full length."""

    student_times: int
    student: PriceSettings
    large_times: int
    large: PriceSettings
    large_tokens: int
    repairs: bool

    @classmethod
    def of(cls, settings: ServeSettings) -> Most:
        """Worked out once for settings."""
        student, large = _questions(settings)
        price = settings.large.price if settings.large is not None else PriceSettings()
        tokens = settings.large.max_tokens if settings.large is not None else 0
        return cls(student, _dearest(settings.prices.student), large, _dearest(price), tokens, settings.repair)

    def usd(self, call: Call) -> float:
        prompt, answer = prompt_bound(call.body), completion_bound(call)
        cost = self.student_times * (prompt * self.student.input + answer * self.student.output)
        if self.large_times:
            answer_of_large = completion_bound(call, self.large_tokens)
            cost += self.large_times * (prompt * self.large.input + answer_of_large * self.large.output)
        repair = (answer + _REPAIR_TOKENS) * self.student.input if self.repairs else 0.0
        return (cost + repair) / 1e6

    def tokens(self, call: Call) -> int:
        prompt, answer = prompt_bound(call.body), completion_bound(call)
        repair = answer + _REPAIR_TOKENS if self.repairs else 0
        large = self.large_times * (prompt + completion_bound(call, self.large_tokens)) if self.large_times else 0
        return self.student_times * (prompt + answer) + large + repair


def completion_bound(call: Call, unset: int = 0) -> int:
    """Tokens of the answers to one question at most; `unset` where the client set none (0: what the contract says)."""
    body = call.body
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or unset
    asked = asked or (call.model.served.contract.max_tokens if call.deployment is not None else 0)
    return int(asked) * int(body.get("n") or 1)


def prompt_bound(body: Json) -> int:
    """No fewer tokens than the prompt has, by any byte-level vocabulary and any usual template."""
    messages = sum(_MESSAGE_TOKENS + _bytes_of(each) for each in body.get("messages") or ())
    return _TEMPLATE_TOKENS + messages + _tools(body)


def prompt_estimate(body: Json) -> int:
    """About as many tokens as the prompt has: four bytes each."""
    return (prompt_bound(body) - _TEMPLATE_TOKENS) // 4 + 1


def _questions(settings: ServeSettings) -> tuple[int, int]:
    """How often the student and the large model may be asked on one call's account."""
    large = 0
    if settings.large is not None and (settings.escalate is not None or settings.direct is not None):
        large = (settings.retries.tries if settings.retries else 1) * (2 if settings.hedge else 1)
    return 1 + settings.repair, large


def _dearest(price: PriceSettings) -> PriceSettings:
    """The price at which no cached prompt makes an answer dearer than expected."""
    if price.cached is None or price.cached <= price.input:
        return price
    return price.model_copy(update={"input": price.cached})


def _cost_of_one(asked: Asked, call: Call, settings: ServeSettings) -> float:
    price = _price_of(asked, settings)
    if asked.usage:
        return price.cost_usd(asked.usage)
    if _cost_nothing(asked):
        return 0.0
    return _dearest(price).cost_usd(_worst(asked, call, settings))


def _tokens_of_one(asked: Asked, call: Call, settings: ServeSettings) -> int:
    usage = asked.usage
    if usage:
        return int(usage.get("prompt_tokens") or 0) + int(usage.get("completion_tokens") or 0)
    return 0 if _cost_nothing(asked) else sum(_worst(asked, call, settings).values())


def _worst(asked: Asked, call: Call, settings: ServeSettings) -> dict[str, int]:
    of_large = settings.large is not None and _is_large(asked, settings)
    answer = completion_bound(call, settings.large.max_tokens if of_large and settings.large else 0)
    more = answer + _REPAIR_TOKENS if asked.by == "repair" else 0
    return {"prompt_tokens": prompt_bound(call.body) + more, "completion_tokens": answer}


def _cost_nothing(asked: Asked) -> bool:
    """A question that was refused (4xx) was never read by a model; after any other fault nobody knows."""
    return asked.fault == "context_length_exceeded" or (asked.fault or "").startswith("4")


def _price_of(asked: Asked, settings: ServeSettings) -> PriceSettings:
    if settings.large is not None and _is_large(asked, settings):
        return settings.large.price
    return settings.prices.student


def _is_large(asked: Asked, settings: ServeSettings) -> bool:
    if asked.by in _OF_STUDENT or settings.large is None:
        return False
    return asked.by in _OF_LARGE or asked.model == settings.large.model


def _bytes_of(message: Json) -> int:
    content = message.get("content")
    if isinstance(content, str) and len(message) == 2:
        return len(content.encode())
    return len(canonical_json(message).encode())  # parts, a name, tool calls, what a tool answered


def _tools(body: Json) -> int:
    """A template may write a tool as indented JSON, in other words than it came."""
    found = body.get("tools"), body.get("response_format")
    return sum(2 * len(canonical_json(each).encode()) for each in found if each)
