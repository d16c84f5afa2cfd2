"""What makes two requests the same: tenant, version, settings, and every field that an answer can depend on.

A field that is not known to be without effect counts. An unknown field then costs a hit and never gives a wrong one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import orjson

from potstill.prompt import joined
from potstill.records import Json, Message

if TYPE_CHECKING:
    from potstill.serving.call import Call
    from potstill.serving.settings import ServeSettings

WITHOUT_EFFECT = frozenset(
    ("model", "user", "metadata", "stream", "stream_options", "store", "service_tier", "safety_identifier",
     "prompt_cache_key", "prompt_cache_retention")
)  # fmt: skip
"""Of a request: who asks, how the answer is sent, what is written down. The model is in the version."""

SETTINGS_WITHOUT_EFFECT = frozenset(
    ("host", "port", "keys", "capture", "state", "prices", "trust", "slots", "threads", "max_body_bytes", "cache",
     "request_timeout_s", "limits", "workers", "telemetry", "follow", "batches", "drift", "breaker", "hedge", "shadow")
)  # fmt: skip
"""Of `serve:`, what cannot change an answer; whatever else is changed makes a cache begin anew."""

_DEFAULTS: Json = {
    "presence_penalty": 0, "frequency_penalty": 0, "top_p": 1, "logprobs": False, "tools": [], "logit_bias": {},
    "stop": [], "response_format": {"type": "text"}, "n": 1,
}  # fmt: skip


def canonical(body: Json) -> Json:
    """The request without what has no effect and what is the default anyway; fields in one form each."""
    found = {key: value for key, value in body.items() if value is not None and key not in WITHOUT_EFFECT}
    found["messages"] = [_message(each) for each in body["messages"]]
    found["temperature"] = float(found.get("temperature") or 0.0)
    tokens = found.pop("max_tokens", None)
    found["max_tokens"] = found.pop("max_completion_tokens", None) or tokens
    if isinstance(found.get("stop"), str):
        found["stop"] = [found["stop"]]
    for name in ("top_p", "presence_penalty", "frequency_penalty"):
        if name in found:
            found[name] = float(found[name])
    if found.get("logprobs"):
        found["stream"] = bool(body.get("stream"))  # only a whole answer can have what is made of all its tokens
    return {key: value for key, value in found.items() if key not in _DEFAULTS or value != _DEFAULTS[key]}


def _message(message: Message) -> Message:
    """Text parts joined, as the prompt is made; empty fields are those that clients echo back."""
    if len(message) == 2 and isinstance(message.get("content"), str):
        return message
    kept = {key: value for key, value in message.items() if value is not None}
    if "content" in kept:
        kept["content"] = joined(kept["content"])
    return kept


def digest(*parts: Any) -> bytes:
    """32 bytes that stand for these JSON values; the order of keys in objects does not count."""
    return hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=32).digest()


def scope_of(call: Call, policy: str) -> list[str]:
    """Within what an answer may be shared: one tenant (one key where there are no tenants), one version, one policy."""
    served = call.model.served
    whose = ["tenant", call.tenant] if call.tenant else ["key", call.key]
    return [*whose, call.model.name, served.digest, served.format, policy]


def policy_of(settings: ServeSettings) -> str:
    """A digest of the settings that an answer can depend on."""
    return digest(settings.model_dump(mode="json", exclude=set(SETTINGS_WITHOUT_EFFECT))).hex()


def deterministic(body: Json) -> bool:
    """Whether the same request gets the same answer again: greedy, and one answer."""
    return not body.get("temperature") and single(body)


def single(body: Json) -> bool:
    return body.get("n") in (None, 1)
