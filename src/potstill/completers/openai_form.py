"""Requests and answers in the form that OpenAI's chat API and llama.cpp's server speak. Pure functions, no I/O."""

from __future__ import annotations

import math
from typing import Any, Literal

from potstill.completers import Completion, CompletionRequest
from potstill.completers.grammar import choices_grammar
from potstill.records import Json
from potstill.tasks.base import Constraint

Dialect = Literal["openai", "llama_cpp"]


def chat_body(request: CompletionRequest, model: str, dialect: Dialect) -> Json:
    """The JSON body of POST /chat/completions.

    In OpenAI's dialect a JSON schema goes as `response_format` and choices go unsaid (no standard field holds them);
    in llama.cpp's both are enforced while decoding.
    """
    body: Json = {
        "model": model,
        "messages": request.messages,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
    }
    if request.logprobs:
        body |= {"logprobs": True, "top_logprobs": 1}
    if request.tools:
        body["tools"] = request.tools
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if dialect == "llama_cpp":
        body["cache_prompt"] = True
        body.update(llama_constraint(request.constraint))
    elif request.constraint is not None and request.constraint.kind == "json_schema":
        schema = {"name": "answer", "schema": request.constraint.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def llama_constraint(constraint: Constraint | None) -> Json:
    """The fields by which llama.cpp's server enforces a constraint."""
    if constraint is None:
        return {}
    if constraint.kind == "choices":
        return {"grammar": choices_grammar(constraint.choices)}
    return {"json_schema": constraint.schema}


def raw_body(request: CompletionRequest, prompt: str) -> Json:
    """The JSON body of llama.cpp's POST /completion for a prompt that is already rendered."""
    body: Json = {
        "prompt": prompt,
        "n_predict": request.max_tokens,
        "temperature": request.temperature,
        "cache_prompt": True,
        "stop": list(request.stop),
        **llama_constraint(request.constraint),
    }
    if request.seed is not None:
        body["seed"] = request.seed
    return body


def read_chat(request: CompletionRequest, data: Any, latency_ms: float) -> Completion:
    """The completion in an answer to `chat_body`; its `error` says so when there is none in it."""
    try:
        choice = data["choices"][0]
        message = dict(choice["message"])
        usage = data.get("usage") or {}
        content = message.get("content")
        return Completion(
            id=request.id,
            text=content if isinstance(content, str) else "",
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            latency_ms=latency_ms,
            message=message,
            confidence=_confidence(choice.get("logprobs")),
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        return failed(request, f"found {str(data)[:200]!r}, expected a chat completion with choices[0].message")


def _confidence(logprobs: Any) -> float | None:
    """The product of the tokens' probabilities; None where the server sent none (or some that are none)."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not tokens:
        return None
    each = [token.get("logprob") if isinstance(token, dict) else None for token in tokens]
    known = [float(one) for one in each if isinstance(one, (int, float)) and one == one]
    return math.exp(min(0.0, sum(known))) if len(known) == len(each) else None


def read_raw(request: CompletionRequest, data: Any, latency_ms: float) -> Completion:
    """The completion in an answer to `raw_body`; its `error` says so when there is none in it."""
    try:
        text = str(data["content"])
        return Completion(
            id=request.id,
            text=text,
            finish_reason="length" if data.get("stop_type") == "limit" else "stop",
            prompt_tokens=data.get("tokens_evaluated"),
            completion_tokens=data.get("tokens_predicted"),
            latency_ms=latency_ms,
            message={"role": "assistant", "content": text},
        )
    except (LookupError, TypeError, AttributeError):
        return failed(request, f"found {str(data)[:200]!r}, expected a completion with content")


def failed(request: CompletionRequest, reason: str) -> Completion:
    """The completion of a request that got no answer."""
    return Completion(id=request.id, text="", error=reason)
