"""The only place where messages become tokens: one template from training to serving.

A prompt is the rendered template up to the assistant's turn; a completion is the answer's text and the token that
ends the turn. Training, evaluation and the golden ids of the contract all come from here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.contract import Golden, first_difference
from potstill.errors import ParityMismatch
from potstill.prompt import joined
from potstill.records import Json, Message
from potstill.tasks.tool_calls import ToolCalls

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# ChatML that also writes what earlier turns called, in the very text that answers are learnt in (`ToolCalls.text_of`):
# without it a tool's result would stand in the prompt and its call would not. The tools themselves are not written.
CHATML_CALLS = CHATML.replace(
    "message['content'] + '<|im_end|>",
    "message['content'] }}{% for call in message['tool_calls'] or [] %}"
    "{{ ('\\n' if message['content'] or not loop.first else '') + '<tool_call>{\"name\": ' }}"
    "{{ (call['function']['name'] | tojson) + ', \"arguments\": ' + (call['function']['arguments'] | tojson) }}"
    "{{ '}</tool_call>' }}{% endfor %}{{ '<|im_end|>",
)
_PROBE = "potstill probe"
Span = tuple[int, int]  # first token and one past the last


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
    `chatml` with tools in play writes the calls of earlier turns too.
    """
    base = str(tokenizer.chat_template)
    speaks = all(token in tokenizer.get_vocab() for token in ("<|im_start|>", "<|im_end|>"))
    if wish == "base" or (wish == "auto" and (tools or not speaks)):
        return base
    if not speaks:
        raise ParityMismatch("chat_template: chatml: this model's vocabulary has no <|im_start|>; use `base`")
    if wish == "chatml":
        return CHATML_CALLS if tools else CHATML
    probe = tokenizer.apply_chat_template([{"role": "user", "content": _PROBE}], tokenize=False)
    smuggles = "system" in probe.split(_PROBE)[0]
    return CHATML if smuggles else base


def plain(messages: Sequence[Message]) -> list[Message]:
    """Messages as templates want them: text content (multi-part joined), None as empty, arguments as objects."""
    out: list[Message] = []
    for message in messages:
        copy = {**message, "content": joined(message.get("content")) or ""}
        if copy.get("tool_calls"):
            copy["tool_calls"] = [_with_object(call) for call in copy["tool_calls"]]
        out.append(copy)
    return out


def _with_object(call: Json) -> Json:
    arguments = call.get("function", {}).get("arguments")
    if not isinstance(arguments, str):
        return call
    with suppress(ValueError):  # what is no JSON stays text, as in the text of an answer
        arguments = json.loads(arguments)
    return {**call, "function": {**call["function"], "arguments": arguments}}


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


def rationale_after_answer(tokenizer: Any, rationale: str) -> tuple[list[int], list[int]]:
    """Token ids of what stands between a finished answer and its rationale (not learnt), and of the rationale.

    Both come after the token that ends the turn, where serving stops: no prompt and no answer has other ids for it.
    """
    return encode(tokenizer, "\n"), encode(tokenizer, rationale + end_of_turn(tokenizer))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole conversation in tokens, and the span of every assistant turn with the token that ends it."""

    token_ids: list[int]
    learnt: tuple[Span, ...]


def conversation(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Json], answer: str, *, name: str = "row"
) -> Conversation:
    """Token ids of a conversation that ends in `answer`, with the spans of its assistant turns.

    Every turn is rendered as when it was the newest and must stand there unchanged later on: text by text and token by
    token, each span is what a row of its own would have taught. Raises ParityMismatch, naming `name`, where the
    template does otherwise. An opening assistant turn (nothing stands before it) is not learnt.
    """
    end = end_of_turn(tokenizer)
    pieces: list[str] = []  # text that is not learnt and text that is, in turns
    so_far = ""
    for at, message in enumerate(messages):
        if message["role"] != "assistant" or at == 0:
            continue
        prompt = render(tokenizer, messages[:at], tools)
        _refuse_rewritten(so_far, prompt, name, at)
        turn = _turn_text(tokenizer, messages[: at + 1], tools, prompt, end, name)
        pieces += [prompt[len(so_far) :], turn]
        so_far = prompt + turn
    prompt = render(tokenizer, messages, tools)
    _refuse_rewritten(so_far, prompt, name, len(messages))
    pieces += [prompt[len(so_far) :], answer + end]
    encoded = [encode(tokenizer, piece) for piece in pieces]
    ids = [token for part in encoded for token in part]
    if ids[: len(ids) - len(encoded[-1])] != encode(tokenizer, prompt):
        raise ParityMismatch(
            f"{name}: this tokenizer merges text across the border of an assistant turn, so that the turn has other "
            "tokens in the conversation than as an answer; use distill.turns: every"
        )
    spans, start = [], 0
    for number, part in enumerate(encoded):
        if number % 2:
            spans.append((start, start + len(part)))
        start += len(part)
    return Conversation(ids, tuple(spans))


def _turn_text(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Json], prompt: str, end: str, name: str
) -> str:
    """What the template writes for the last message, up to and with the end of the turn; `prompt` is what is before."""
    at = len(messages) - 1
    text = render(tokenizer, messages, tools, generation=False)
    _refuse_rewritten(prompt, text, name, at)
    turn, found, _ = text[len(prompt) :].partition(end)
    if not found:
        raise ParityMismatch(
            f"{name}: the chat template does not end the assistant turn at messages[{at}] with {end!r} as it ends the "
            "last one; use distill.turns: every"
        )
    wanted = ToolCalls().text_of(messages[at]) if messages[at].get("tool_calls") else turn
    if turn.strip() != wanted.strip():
        raise ParityMismatch(
            f"{name}: the chat template writes the tool calls of earlier turns (messages[{at}]) otherwise than answers "
            f"are learnt ({first_difference(wanted, turn)}); use distill.turns: every, or train.chat_template: chatml "
            "where the model speaks it"
        )
    return turn + end


def _refuse_rewritten(before: str, after: str, name: str, at: int) -> None:
    """Raise ParityMismatch unless `after` goes on from `before`: a mask over rewritten turns teaches the wrong text."""
    if not after.startswith(before):
        raise ParityMismatch(
            f"{name}: the chat template rewrites earlier turns once messages[{at}] follows (it may drop earlier "
            f"reasoning, or open the newest turn otherwise): {first_difference(before, after)}; a whole conversation "
            "cannot be learnt at once with it; use distill.turns: every"
        )


def golden(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Json]) -> Golden:
    """One prompt with the text and ids that this tokenizer gives it."""
    text = render(tokenizer, messages, tools)
    return Golden(list(messages), list(tools), text, encode(tokenizer, text))
