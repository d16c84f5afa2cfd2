"""Is the answer one that the task calls valid? Its message is put into the task's own form (tool calls unpacked)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.serving.call import Call
from potstill.serving.steps import Step
from potstill.tasks import Task

if TYPE_CHECKING:
    from potstill.serving.server import Server


def validate_output(call: Call, task: Task) -> None:
    """Fill `call.parsed` and rewrite the answer's message; an invalid answer is passed on as it is, and counted."""
    choice = call.response["choices"][0]
    text = task.text_of(choice["message"])
    call.parsed = task.parse(text, call.body.get("tools") or [])
    choice["message"] = task.message_of(text)
    if choice["message"].get("tool_calls"):
        choice["finish_reason"] = "tool_calls"


class ValidateOutput(Step):
    async def after(self, call: Call) -> None:
        validate_output(call, call.model.served.task)


def make(server: Server) -> Step:
    return ValidateOutput()
