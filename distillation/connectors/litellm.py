"""What both of LiteLLM's logs share: what is left out of them, and what was cut or blackened in them.

Source: LiteLLM's documentation (StandardLoggingPayload, spend logs) and the schema of its database.
"""

from __future__ import annotations

import json

from potstill.errors import DamagedLine
from potstill.records import Json

from . import normal
from .fields import a_list, a_text, an_object, parsed

_NO_CHAT = (
    "embedding",
    "image",
    "moderation",
    "transcription",
    "speech",
    "rerank",
    "batch",
    "file",
    "mcp",
    "ocr",
    "search",
)


def is_chat(call_type: object) -> bool:
    """Whether a call asked a language model for an answer; a call without a type counts as one."""
    return not isinstance(call_type, str) or not any(each in call_type.lower() for each in _NO_CHAT)


def refuse_incomplete(*values: object) -> None:
    """Raise DamagedLine when LiteLLM cut or blackened what it logged: half a prompt must not be learnt as a whole."""
    said = json.dumps(values, default=str)
    if "litellm_truncated" in said:
        raise DamagedLine(
            "messages or response: cut by LiteLLM (litellm_truncated); raise its MAX_STRING_LENGTH_PROMPT_IN_DB"
        )
    if "redacted-by-litellm" in said:
        raise DamagedLine("messages or response: redacted by LiteLLM (turn_off_message_logging), expected the text")


def _written_out(text: str, call_type: object) -> object:
    """What a text that begins like JSON says. The Responses API takes bare text too, which may begin so by chance."""
    if not (isinstance(call_type, str) and "responses" in call_type):
        return parsed(text, "messages")
    try:
        found = parsed(text, "messages")
    except DamagedLine:
        return text
    if isinstance(found, dict):
        return found if "input" in found or "messages" in found else text
    items = bool(found) and all(isinstance(each, dict) and ("role" in each or "type" in each) for each in found)
    return found if items else text


def request_of(messages: object, call_type: object, others: Json) -> Json:
    """A request body from what LiteLLM logs as `messages`: messages, items of the Responses API, or a text."""
    if isinstance(messages, str) and messages.lstrip().startswith(("[", "{")):
        messages = _written_out(messages, call_type)
    if isinstance(messages, dict) and ("messages" in messages or "input" in messages):
        return {**others, **messages}
    if isinstance(call_type, str) and "responses" in call_type:
        return {**others, "input": messages}
    if isinstance(messages, dict):
        messages = [messages]
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return {**others, "messages": a_list(messages, "messages")}


def tags_of(value: object, where: str) -> list[str]:
    """Request tags as a list of texts, also from JSON text."""
    found = parsed(value, where)
    return (
        [] if found in (None, {}) else [a_text(each, f"{where}[{at}]") for at, each in enumerate(a_list(found, where))]
    )


def key_of(metadata: Json, otherwise: object = None) -> object:
    """The name of the key that was used, or else its hash."""
    return metadata.get("user_api_key_alias") or metadata.get("user_api_key_hash") or otherwise or None


def error_of(*places: object) -> str:
    """The reason of a failed call, from the first of these that says one."""
    for each in places:
        if isinstance(each, str) and each:
            return " ".join(each.split())[:300]
        if isinstance(each, dict) and (each.get("error_message") or each.get("error_class")):
            found = an_object(each, "error_information")
            said = [str(found[key]) for key in ("error_code", "error_class", "error_message") if found.get(key)]
            return " ".join(" ".join(said).split())[:300]
    return "no reason logged"


def with_usage(response: Json, row: Json) -> Json:
    """The response, with the row's own token counts where it has none itself."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    said = normal.usage({key: row.get(key) for key in names}, "")
    return response | {"usage": said} if "usage" not in response and any(said.values()) else response
