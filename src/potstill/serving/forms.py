"""Shapes other than chat in which a request may come and its answer go. Inside, everything is a chat completion.

So the older text completions meet the very same steps (keys, limits, budgets, screens, caches, capture) as chat does.
"""

from __future__ import annotations

from typing import Any, Protocol

from potstill.records import Json
from potstill.serving.chat_request import CompletionRequest
from potstill.serving.validate_input import shaped


class Form(Protocol):
    """The way in and the way out of a shape."""

    route: str

    def asked(self, body: Json) -> Json:
        """The chat completion that is meant; raises RequestRefused 400."""

    def whole(self, response: Json) -> Json:
        """The whole answer in this shape."""

    def event(self, chunk: Json) -> Json:
        """One chunk of a stream in this shape."""


class TextForm:
    """POST /v1/completions: the prompt is put as a user's turn, since a student was trained on nothing else."""

    route = "/v1/completions"

    def __init__(self) -> None:
        self._written: dict[int, int] = {}

    def asked(self, body: Json) -> Json:
        shaped(CompletionRequest, body)
        chat = {key: each for key, each in body.items() if key not in ("prompt", "logprobs", "best_of")}
        prompt = body["prompt"] if isinstance(body["prompt"], str) else body["prompt"][0]
        chat["messages"] = [{"role": "user", "content": prompt}]
        if body.get("logprobs") is not None:
            chat |= {"logprobs": True, "top_logprobs": int(body["logprobs"])}
        return chat

    def whole(self, response: Json) -> Json:
        choices = [self._choice(each, each["message"]) for each in response["choices"]]
        return response | {"object": "text_completion", "choices": choices}

    def event(self, chunk: Json) -> Json:
        choices = [self._choice(each, each["delta"]) for each in chunk["choices"]]
        return chunk | {"object": "text_completion", "choices": choices}

    def _choice(self, choice: Json, message: Json) -> Json:
        at, text = choice["index"], message.get("content") or ""
        before = self._written.get(at, 0)
        self._written[at] = before + len(text)
        content = (choice.get("logprobs") or {}).get("content")
        return {
            "text": text,
            "index": at,
            "logprobs": _older(content, before) if content else None,
            "finish_reason": choice.get("finish_reason"),
        }


def _older(content: list[Json], offset: int) -> Json:
    """Log-probabilities in the older shape: one list a property instead of one object a token."""
    offsets, tops = [], list[dict[str, Any]]()
    for each in content:
        offsets.append(offset)
        offset += len(each["token"])
        tops.append({top["token"]: top["logprob"] for top in each.get("top_logprobs") or []})
    return {
        "tokens": [each["token"] for each in content],
        "token_logprobs": [each["logprob"] for each in content],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
