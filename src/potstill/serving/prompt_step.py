"""The prompt that the student was trained on: standing instructions left out by the rule in the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.prompt import PromptRule, joined
from potstill.records import Message
from potstill.serving.call import Call
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

_KEPT = ("role", "content", "name", "tool_calls", "tool_call_id")


def strip_instructions(call: Call, rule: PromptRule) -> None:
    """Fill `call.upstream["messages"]`. Instructions that the rule does not know stay, and are remarked on."""
    messages = [_plain(each) for each in call.body["messages"]]
    call.unknown_instructions = bool(rule.drops) and not rule.recognises(messages)
    call.upstream["messages"] = rule.apply(messages)


class StripInstructions(Step):
    async def before(self, call: Call) -> None:
        strip_instructions(call, call.model.served.rule)


def make(server: Server) -> Step:
    return StripInstructions()


def _plain(message: Message) -> Message:
    """Only what templates read, with text parts joined: the rule and the templates compare plain text."""
    kept = {key: message[key] for key in _KEPT if message.get(key) is not None}
    kept["content"] = joined(message.get("content")) or ""
    return kept
