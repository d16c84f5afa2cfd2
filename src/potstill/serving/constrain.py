"""What the engine is asked to write, and how: the task's grammar, the contract's stops and bounds.

Greedy decoding and the contract's `max_tokens` are the defaults since the evidence was taken so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from potstill.completers.openai_form import llama_constraint
from potstill.contract import Contract
from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.errors import RequestRefused
from potstill.serving.schema_equality import same_schema
from potstill.serving.steps import Step
from potstill.serving.tool_grammar import call_grammar
from potstill.tasks import Constraint

if TYPE_CHECKING:
    from potstill.serving.server import Server

_PASSED = (
    "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice",
    "parallel_tool_calls",
)  # fmt: skip


def constrain(call: Call, contract: Contract, constraint: Constraint | None) -> None:
    """Fill the rest of `call.upstream`; raises RequestRefused 400 for a format that the task cannot write."""
    body, upstream = call.body, call.upstream
    upstream |= {key: body[key] for key in _PASSED if body.get(key) is not None}
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or contract.max_tokens
    upstream["max_tokens"] = min(asked, contract.window)
    upstream["temperature"] = body["temperature"] if body.get("temperature") is not None else 0.0
    if body.get("seed") is not None:
        upstream["seed"] = body["seed"] % 2**32
    stops = body.get("stop") or []
    upstream["stop"] = [*contract.stop, *([stops] if isinstance(stops, str) else stops)]
    upstream["cache_prompt"] = True
    wanted = body.get("response_format") or {"type": "text"}
    if constraint is None:
        if wanted.get("type") != "text":
            upstream["response_format"] = wanted
        if contract.task.get("kind") == "tool_calls" and body.get("tools"):
            _make_it_call(body, upstream)
        return
    if body["messages"][-1]["role"] == "assistant":
        at = f"messages.{len(body['messages']) - 1}"
        message = f"{at}: found role assistant; an answer that is begun cannot be held to the task: leave it out"
        raise RequestRefused(400, message, param=at)
    _refuse_what_the_task_is_not(body, wanted, constraint)
    upstream |= llama_constraint(constraint)


def _make_it_call(body: Json, upstream: Json) -> None:
    """Where a call is asked for, nothing else can be written."""
    choice = body.get("tool_choice")
    if choice is None or choice in ("none", "auto"):
        return
    functions = [each["function"] for each in body["tools"]]
    if choice != "required":
        functions = [each for each in functions if each["name"] == choice["function"]["name"]]
    upstream["grammar"] = call_grammar(functions, several=bool(body.get("parallel_tool_calls")))


class Constrain(Step):
    def __init__(self, constrained: bool) -> None:
        self._constrained = constrained

    async def before(self, call: Call) -> None:
        served = call.model.served
        constrain(call, served.contract, served.task.constraint() if self._constrained else None)


def make(server: Server) -> Step:
    return Constrain(server.settings.constrain)


def _refuse_what_the_task_is_not(body: Json, wanted: Json, constraint: Constraint) -> None:
    what = "one of its labels" if constraint.kind == "choices" else "JSON of its own schema"
    if body.get("tools"):
        raise RequestRefused(400, f"tools: this model answers with {what} and calls none; remove it", param="tools")
    kind = wanted.get("type")
    if kind == "text":
        return
    if constraint.kind == "json_schema":
        if kind == "json_object":
            return
        given: Any = (wanted.get("json_schema") or {}).get("schema")
        if kind == "json_schema" and same_schema(given, constraint.schema):
            return
    raise RequestRefused(
        400,
        f"response_format: found {kind!r}, but this model answers with {what}; leave response_format out",
        param="response_format",
    )
