"""How many tokens a conversation is, by the engine that will read it: its own template and its own tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from potstill.records import Json, Message
from potstill.serving.backends import Address, Backend
from potstill.serving.upstream import UpstreamFault

_TIMEOUT_S = 5.0


async def count_tokens(engine: Backend, messages: Sequence[Message], tools: Sequence[Json]) -> int | None:
    """The prompt's tokens as a request would count them; None where the engine cannot be asked.

    llama.cpp renders (`/apply-template`) and tokenises (`/tokenize`); vLLM does both in one (`/tokenize` of messages).
    """
    body: Json = {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            if engine.dialect == "llama_cpp":
                rendered = await _asked(engine, "/apply-template", body)
                body = {"content": rendered["prompt"], "add_special": False, "parse_special": True}
            elif isinstance(engine, Address):
                body["model"] = engine.model
            found = await _asked(engine, "/tokenize", body)
            return int(found["count"]) if "count" in found else len(found["tokens"])
    except (TimeoutError, UpstreamFault, KeyError, TypeError, ValueError):
        return None


async def _asked(engine: Backend, path: str, body: Json) -> Any:
    reply = await engine.upstream.post(path, orjson.dumps(body))
    try:
        return orjson.loads(await reply.read())
    finally:
        reply.close()
