"""What an engine must answer before traffic, asked over OpenAI's API: its models, golden prompts, canary questions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from potstill.canaries import Canary
from potstill.completers.openai_form import llama_constraint
from potstill.contract import Contract, golden_differences
from potstill.errors import EngineFailure, ParityMismatch, RecipeError
from potstill.progress import say
from potstill.records import Json
from potstill.serving.backends import VLLM_MODEL, Borrowed, Dialect, body_for
from potstill.serving.engine_settings import AddressSettings

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom the checks ask: an address without its /v1, what it speaks, and its model's name there."""

    url: str
    dialect: Dialect
    model: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_vllm(cls, url: str) -> Peer:
        return cls(url, "vllm", VLLM_MODEL)

    @classmethod
    def at(cls, settings: AddressSettings) -> Peer:
        """Raises RecipeError for a key that is not set."""
        headers = {}
        if settings.key is not None:
            secret = os.environ.get(settings.key, "")
            if not secret:
                raise RecipeError([f"serve.engine.key: environment variable {settings.key} is not set; export it"])
            headers["authorization"] = f"Bearer {secret}"
        return cls(settings.url.rstrip("/").removesuffix("/v1"), "openai", settings.model, headers)


def check_peer(peer: Peer, contract: Contract, canaries: Sequence[Canary]) -> str:
    """The model's name there, once it was found to answer as the contract says.

    Token ids are compared where the peer tells them (vLLM), else the count of the prompt's tokens. Raises
    EngineFailure for a peer that does not answer, ParityMismatch for one that answers otherwise.
    """
    listed = [str(each.get("id")) for each in _call(peer, "GET", "/v1/models").get("data") or []]
    name = peer.model or (listed[0] if len(listed) == 1 else None)
    if name is None or name not in listed:
        asked = f"{name!r} is not" if name else "serve.engine.model is unset and it does not list exactly one model: it"
        raise ParityMismatch(f"{peer.url}: {asked} among its models: {', '.join(listed[:10]) or 'none'}")
    known = Peer(peer.url, peer.dialect, name, peer.headers)
    _check_golden(known, contract)
    ask_canaries(known, contract, canaries)
    return name


def _check_golden(peer: Peer, contract: Contract) -> None:
    faults: list[str] = []
    if peer.dialect == "vllm":
        bodies = [
            {"model": peer.model, "messages": each.messages, "add_generation_prompt": True}
            | ({"tools": each.tools} if each.tools else {})
            for each in contract.golden
        ]
        faults = golden_differences(contract, [_call(peer, "POST", "/tokenize", each)["tokens"] for each in bodies])
    for at, golden in enumerate(contract.golden[:1]):
        found = _complete(peer, golden.messages, golden.tools, {"max_tokens": 1}).get("usage") or {}
        count = found.get("prompt_tokens")
        if count is not None and count != len(golden.token_ids):
            faults.append(f"golden prompt {at}: a request counts {count} tokens, expected {len(golden.token_ids)}")
    if faults:
        raise ParityMismatch(f"{peer.url}: it does not see what the model was trained on: {'; '.join(faults[:5])}")


def ask_canaries(peer: Peer, contract: Contract, canaries: Sequence[Canary]) -> None:
    """Raises ParityMismatch where most canaries are answered otherwise than when the artifact was verified.

    Another processor may round one near-tie the other way; another model answers most of them differently. Answers are
    compared as the task reads them. Only a choice among labels is constrained, as in the verification.
    """
    task = contract.make_task()
    constraint = task.constraint()
    written = llama_constraint(constraint) if constraint is not None and constraint.kind == "choices" else {}
    more: Json = {"max_tokens": contract.max_tokens, "stop": contract.stop, **written}
    faults = []
    for at, canary in enumerate(canaries):
        message = _complete(peer, canary.messages, canary.tools, more)["choices"][0]["message"]
        text = task.text_of(message)
        found, wanted = task.parse(text, canary.tools), task.parse(canary.answer, canary.tools)
        if not found.valid or found.value != wanted.value:
            faults.append(f"canary {at}: answered {text[:60]!r}, expected {canary.answer[:60]!r}")
    if not faults:
        return
    message = (
        f"{peer.url}: {len(faults)} of {len(canaries)} canary questions are answered otherwise than when the "
        f"artifact was verified: {'; '.join(faults[:3])}; is it the same model, and the same build of the engine?"
    )
    if 2 * len(faults) > len(canaries):
        raise ParityMismatch(message)
    say(f"serve: {message}")


def _complete(peer: Peer, messages: Sequence[Json], tools: Sequence[Json], more: Json) -> Json:
    upstream = {"messages": list(messages), "temperature": 0, **({"tools": list(tools)} if tools else {}), **more}
    body = body_for(Borrowed(peer.dialect, peer.url, True), upstream)
    if peer.model is not None:
        body = body | {"model": peer.model}
    reply = _call(peer, "POST", "/v1/chat/completions", body)
    if not reply.get("choices"):
        raise EngineFailure(f"{peer.url}: an answer without choices: {str(reply)[:200]}")
    return reply


def _call(peer: Peer, method: str, path: str, body: Json | None = None) -> Json:
    try:
        reply = httpx.request(method, peer.url + path, json=body, headers=dict(peer.headers), timeout=_TIMEOUT_S)
        found = reply.raise_for_status().json()
    except httpx.HTTPStatusError as fault:
        text = fault.response.text[:200]
        raise EngineFailure(f"{peer.url}{path}: {fault.response.status_code}: {text}") from fault
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as fault:
        raise EngineFailure(f"{peer.url}{path}: did not answer a first question: {fault!r}") from fault
    if not isinstance(found, dict):
        raise EngineFailure(f"{peer.url}{path}: answered {type(found).__name__}, expected a JSON object")
    return found
