"""A grammar that makes a model call a tool: `tool_choice` of "required", or of one function by name.

llama.cpp enforces `tool_choice` only for templates whose tool syntax it recognises, and says nothing where it does not.
A student of tool calls writes the canonical form of its task (`tasks/tool_calls.py`), so the grammar is of that form.
Of the parameters' schema it holds the names at the top, what is required, and plain types; the rest is any JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from potstill.completers.grammar import choices_grammar
from potstill.records import Json

_JSON = r"""
object ::= "{" ws (pair ("," ws pair)*)? "}"
pair ::= string ":" ws value
array ::= "[" ws (value ("," ws value)*)? "]"
value ::= object | array | string | number | boolean | "null"
string ::= "\"" ([^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\""
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?
boolean ::= "true" | "false"
ws ::= " "?
"""
_RULES = ("object", "array", "string", "integer", "number", "boolean")


def call_grammar(functions: Sequence[Json], several: bool) -> str:
    """Calls of these functions and nothing else: one, or (`several`) one or more."""
    calls, rules = [], []
    for at, function in enumerate(functions):
        name = _literal(f'"name": {_json(function["name"])}, "arguments": ')
        calls.append(f"{name} args{at}")
        rules.append(f"args{at} ::= {_arguments(function.get('parameters') or {})}")
    more = r' ("\n" call)*' if several else ""
    call = f'call ::= "<tool_call>{{" ({" | ".join(calls)}) "}}</tool_call>"'
    return "\n".join([f"root ::= call{more}", call, *rules]) + _JSON


def _arguments(schema: Json) -> str:
    """The object of a function's arguments: what is required in order, then what is not."""
    known, required = schema.get("properties") or {}, schema.get("required") or []
    first = [name for name in known if name in required]
    if not first:
        return "object"
    pairs = [f"{_literal(_json(name) + ': ')} {_rule(known[name])}" for name in first]
    rest = [f"({_literal(', ' + _json(name) + ': ')} {_rule(known[name])})?" for name in known if name not in first]
    return " ".join(['"{"', ' ", " '.join(pairs), *rest, '"}"'])


def _rule(schema: Any) -> str:
    choices = schema.get("enum") if isinstance(schema, dict) else None
    if choices:
        return "(" + " | ".join(_literal(_json(each)) for each in choices) + ")"
    kind = schema.get("type") if isinstance(schema, dict) else None
    return kind if kind in _RULES else "value"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _literal(text: str) -> str:
    return choices_grammar([text]).removeprefix("root ::= ")
