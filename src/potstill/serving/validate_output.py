"""Is the answer one that the task calls valid? Its message is put into the task's own form (tool calls unpacked)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.serving.call import Call
from potstill.serving.steps import Step
from potstill.tasks import Task

if TYPE_CHECKING:
    from potstill.serving.server import Server


def validate_output(call: Call, task: Task) -> None:
    """Fill `call.parsed` and rewrite the message of every choice; an invalid answer is passed on and counted.

    With several choices `call.parsed` is the first one's.
    """
    for at, choice in enumerate(call.response["choices"]):
        text = task.text_of(choice["message"])
        parsed = task.parse(text, call.body.get("tools") or [])
        call.parsed = parsed if at == 0 else call.parsed
        choice["message"] = task.message_of(text)
        if choice["message"].get("tool_calls"):
            choice["finish_reason"] = "tool_calls"


class ValidateOutput(Step):
    async def after(self, call: Call) -> None:
        validate_output(call, call.model.served.task)


def make(server: Server) -> Step:
    return ValidateOutput()
