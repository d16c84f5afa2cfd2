"""The only place where messages become tokens: one template from training to serving.

A prompt is the rendered template up to the assistant's turn; a completion is the answer's text and the token that
ends the turn. Training, evaluation and the golden ids of the contract all come from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.contract import Golden
from potstill.errors import ParityMismatch
from potstill.prompt import joined
from potstill.records import Json, Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_PROBE = "potstill probe"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a base or adapter folder, with a chat template (raises ParityMismatch without one)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise ParityMismatch(f"{folder}: the tokenizer has no chat template; use an instruct model or set one")
    return tokenizer


def choose_template(tokenizer: Any, wish: str, *, tools: bool) -> str:
    """The template to train with: the base's own (`base`), plain ChatML (`chatml`), or the better one (`auto`).

    `auto` takes ChatML when the model speaks it, no tools are in play, and its own template would smuggle a default
    system text into every prompt that has none (SmolLM2: 23 tokens a row that teach and tell nothing).
    """
    base = str(tokenizer.chat_template)
    speaks = all(token in tokenizer.get_vocab() for token in ("<|im_start|>", "<|im_end|>"))
    if wish == "base" or (wish == "auto" and (tools or not speaks)):
        return base
    if not speaks:
        raise ParityMismatch("chat_template: chatml: this model's vocabulary has no <|im_start|>; use `base`")
    if wish == "chatml":
        return CHATML
    probe = tokenizer.apply_chat_template([{"role": "user", "content": _PROBE}], tokenize=False)
    smuggles = "system" in probe.split(_PROBE)[0]
    return CHATML if smuggles else base


def plain(messages: Sequence[Message]) -> list[Message]:
    """Messages as templates want them: text content (multi-part joined), None as empty, arguments as objects."""
    import json

    out: list[Message] = []
    for message in messages:
        copy = {**message, "content": joined(message.get("content")) or ""}
        if copy.get("tool_calls"):
            copy["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
                if isinstance(call.get("function", {}).get("arguments"), str)
                else call
                for call in copy["tool_calls"]
            ]
        out.append(copy)
    return out


def render(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Json] = (), *, generation: bool = True) -> str:
    """The prompt's text: the template applied, ending where the assistant begins to write."""
    return str(
        tokenizer.apply_chat_template(
            plain(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=generation
        )
    )


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text: the template has written every special token, none is added."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def end_of_turn(tokenizer: Any) -> str:
    """The text of the token that closes an assistant turn: what the template puts after the answer.

    Falls back on the tokenizer's end-of-sequence token when the template writes nothing after an answer.
    """
    messages = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
    tail = render(tokenizer, messages, generation=False).rsplit(_PROBE, 1)[1].strip()
    specials = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    return next((token for token in specials if tail.startswith(token)), str(tokenizer.eos_token))


def prompt_and_completion(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Json], answer: str
) -> tuple[list[int], list[int]]:
    """Token ids of a training row: the prompt (not learnt) and the answer with its end (learnt)."""
    prompt = encode(tokenizer, render(tokenizer, messages, tools))
    return prompt, encode(tokenizer, answer + end_of_turn(tokenizer))


def golden(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Json]) -> Golden:
    """One prompt with the text and ids that this tokenizer gives it."""
    text = render(tokenizer, messages, tools)
    return Golden(list(messages), list(tools), text, encode(tokenizer, text))
