"""Is the answer one that the task calls valid? Its message is put into the task's own form (tool calls unpacked).

With `serve.repair`, the student is asked once more after an invalid answer, with the fault said. Not after one that was
cut off at its bound of tokens, which it would reach again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.serving.call import Call
from potstill.serving.engine_step import Question
from potstill.serving.errors import RequestRefused
from potstill.serving.routing import time_left
from potstill.serving.routing_meter import RoutingMeter
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


async def repair(call: Call, timeout_s: float) -> bool:
    """Ask the student once more, the fault said; True where the call has a valid answer now."""
    task, parsed, before = call.model.served.task, call.parsed, call.response
    assert parsed is not None
    said = task.text_of(before["choices"][0]["message"])
    fault = f"Your answer is not valid: {parsed.reason}. Answer again: the valid answer and nothing else."
    messages = [{"role": "assistant", "content": said}, {"role": "user", "content": fault}]
    body = call.upstream | {"messages": [*call.upstream["messages"], *messages]}
    question = Question(call.model.engine, body, time_left(call, timeout_s), timeout_s)
    try:
        again = await question.whole()
    except RequestRefused:
        return False  # the invalid answer stays; what is done with it is not changed by a failed repair
    finally:
        call.asked.append(question.asked("repair", call.model.name))
    call.response = before | {"choices": again["choices"], "usage": again["usage"]}
    validate_output(call, task)
    if call.parsed is not None and call.parsed.valid:
        return True
    call.response, call.parsed = before, parsed
    return False


class ValidateOutput(Step):
    async def after(self, call: Call) -> None:
        validate_output(call, call.model.served.task)


class ValidateAndRepair(ValidateOutput):
    def __init__(self, server: Server) -> None:
        self._constrained, self._timeout_s = server.settings.constrain, server.settings.request_timeout_s
        self._meter = RoutingMeter.of(server.meter)

    def needs_whole(self, call: Call) -> bool:
        """A repair can only replace what nobody has seen; what a grammar keeps valid needs none."""
        return not (self._constrained and call.model.served.task.constraint() is not None)

    async def after(self, call: Call) -> None:
        await super().after(call)
        if self._reparable(call):
            mended = await repair(call, self._timeout_s)
            self._meter.repaired.labels("valid" if mended else "invalid").inc()

    def _reparable(self, call: Call) -> bool:
        if call.parsed is None or call.parsed.valid or call.answered_by != "engine" or call.http.status:
            return False
        return call.choices == 1 and bool(call.response["choices"][0].get("finish_reason") != "length")


def make(server: Server) -> Step:
    return ValidateAndRepair(server) if server.settings.repair else ValidateOutput()
