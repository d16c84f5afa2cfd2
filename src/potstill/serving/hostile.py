"""JSON Schemas and patterns that would keep an engine, or a validator, busy for ever: refused before either sees them.

A grammar is made of a schema before a token is written, and an answer is held against it afterwards. What blows up
there: repetitions within repetitions (`(a+)+`, `(a{1,500}){1,500}`: Davis et al., "The Impact of Regular Expression
Denial of Service in Practice", 2018), references that multiply ("billion laughs") or lead nowhere, and sheer size.
Tried on llama.cpp (xllamacpp 2026.10): `minItems` above `maxItems`, and `minLength` above `maxLength`, hang the whole
engine for good; an enum of 1,000 values costs 1.4 s a token, an object of 900 optional properties 10 s.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from potstill.records import Json

MOST_DEPTH = 32
MOST_NODES = 5_000
MOST_EXPANDED = 20_000  # nodes once every reference is put in
MOST_REPEATED = 2_000  # times one thing may be repeated, also through repetitions of its repetition
MOST_PATTERN = 500  # characters
MOST_CHOICES = 500  # of one enum
MOST_PROPERTIES = 300  # of one object
_BOUNDS = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"))
_RANGES = (*_BOUNDS, ("minimum", "maximum"), ("minContains", "maxContains"))
_NAMED = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_VALUES = ("enum", "const", "default", "examples", "required")
_BRACES = re.compile(r"\{([0-9]+)(,([0-9]*))?\}")
_KNOWN: dict[bytes, str | None] = {}
_KNOWN_AT_MOST = 4096


def fault_of_schema(schema: Json, most_bytes: int) -> str | None:
    """Why this schema is refused, None where it may pass. The verdict on the last few thousand is remembered."""
    try:
        data = orjson.dumps(schema)
    except TypeError as fault:
        return f"not to be written as JSON: {fault}"
    if len(data) > most_bytes:
        return f"a schema of {len(data):,} bytes, expected at most {most_bytes:,}"
    key = blake2b(data, digest_size=16).digest()
    if key not in _KNOWN:
        if len(_KNOWN) >= _KNOWN_AT_MOST:
            _KNOWN.clear()
        _KNOWN[key] = _fault_of(schema)
    return _KNOWN[key]


def _fault_of(schema: Json) -> str | None:
    import jsonschema_rs

    try:
        nodes, refs = _walked(schema)
        _expanded(schema, schema, nodes, refs)
        jsonschema_rs.meta.validate({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})
    except _Hostile as fault:
        return str(fault)[:300]
    except ValueError as fault:
        return f"not a JSON Schema: {str(fault).splitlines()[0][:200]}"
    return None


class _Hostile(Exception):
    """Why a schema is refused."""


def _walked(schema: Json) -> tuple[int, list[str]]:
    """Its number of nodes and its references; raises _Hostile for a part that is too much by itself."""
    nodes, refs = 0, list[str]()
    waiting: list[tuple[Any, int, bool]] = [(schema, 1, False)]
    while waiting:
        node, depth, names = waiting.pop()
        nodes += 1
        if depth > MOST_DEPTH:
            raise _Hostile(f"nested more than {MOST_DEPTH} deep")
        if nodes > MOST_NODES:
            raise _Hostile(f"more than {MOST_NODES:,} parts")
        if isinstance(node, list):
            waiting += [(each, depth + 1, False) for each in node]
        elif isinstance(node, dict):
            if not names:
                _check_keywords(node, refs)
            waiting += [
                (each, depth + 1, not names and key in _NAMED)
                for key, each in node.items()
                if names or key not in _VALUES
            ]
    return nodes, refs


def _check_keywords(node: Json, refs: list[str]) -> None:
    for key in (each for pair in _BOUNDS for each in pair):
        count = node.get(key)
        if isinstance(count, int | float) and count > MOST_REPEATED:
            raise _Hostile(f"{key}: found {count!r}, expected at most {MOST_REPEATED:,}")
    for low, high in _RANGES:
        least, most = node.get(low), node.get(high)
        if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
            raise _Hostile(f"{low} {least!r} is above {high} {most!r}: nothing can be written")
    if isinstance(named := node.get("properties"), dict) and len(named) > MOST_PROPERTIES:
        raise _Hostile(f"properties: {len(named):,} of one object, expected at most {MOST_PROPERTIES}")
    if isinstance(choices := node.get("enum"), list) and len(choices) > MOST_CHOICES:
        raise _Hostile(f"enum: {len(choices):,} values, expected at most {MOST_CHOICES:,}")
    named = node.get("patternProperties")
    patterns = [node.get("pattern"), *(named if isinstance(named, dict) else ())]
    for pattern in patterns:
        if isinstance(pattern, str) and (fault := fault_of_pattern(pattern)):
            raise _Hostile(f"pattern: {fault}")
    for key in ("$ref", "$dynamicRef"):
        if isinstance(ref := node.get(key), str):
            if not ref.startswith("#"):
                raise _Hostile(f"{key}: found {ref[:80]!r}, expected one within the schema (#/...)")
            refs.append(ref)


def _expanded(schema: Json, root: Json, nodes: int, refs: list[str]) -> None:
    """Raises _Hostile for references that lead nowhere, in a ring, or to too much once they are put in."""
    if not refs:
        return
    sizes: dict[str, int] = {}

    def size_of(node: Any, path: tuple[str, ...]) -> int:
        if len(path) > MOST_DEPTH:
            raise _Hostile(f"references lead more than {MOST_DEPTH} deep")
        if isinstance(node, list):
            return 1 + sum(size_of(each, path) for each in node)
        if not isinstance(node, dict):
            return 1
        total = 1 + sum(size_of(each, path) for key, each in node.items() if key not in _VALUES)
        ref = node.get("$ref")
        if isinstance(ref, str) and ref not in path:  # a ring through a property is recursion, and lawful
            if ref not in sizes:
                target = _target(root, ref)
                sizes[ref] = size_of(target, (*path, ref))
            total += sizes[ref]
        if total > MOST_EXPANDED:
            raise _Hostile(f"more than {MOST_EXPANDED:,} parts once its references are put in")
        return total

    for ref in refs:
        _refuse_ring(root, ref)
    size_of(schema, ())


def _refuse_ring(root: Json, ref: str) -> None:
    """References that lead to references only."""
    seen = {ref}
    node = _target(root, ref)
    while isinstance(node, dict) and isinstance(following := node.get("$ref"), str):
        if following in seen:
            raise _Hostile(f"$ref: {following[:80]!r} leads back to itself")
        seen.add(following)
        node = _target(root, following)


def _target(root: Json, ref: str) -> Any:
    node: Any = root
    for part in ref.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, list) and name.isdecimal() and len(name) < 6 and int(name) < len(node):
            node = node[int(name)]
        else:
            raise _Hostile(f"$ref: {ref[:80]!r} leads nowhere")
    if ref != "#" and not ref.startswith("#/"):
        raise _Hostile(f"$ref: {ref[:80]!r}: expected a path within the schema (#/...)")
    return node


def fault_of_pattern(pattern: str) -> str | None:
    """Why this pattern is refused: too long, or repeated within what is repeated, or back-references."""
    if len(pattern) > MOST_PATTERN:
        return f"{len(pattern):,} characters, expected at most {MOST_PATTERN}"
    if fault := _Scan(pattern).fault():
        return fault
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as fault:
        return f"not a pattern: {fault}"
    return None


@dataclass(slots=True)
class _Group:
    """What stands between two brackets: does its length vary by repetition, how often does it repeat at most.

    `firsts` are the beginnings of its alternatives: where two are alike, a repetition can read one text in many ways.
    """

    varies: bool = False
    times: int = 1
    firsts: list[str] = field(default_factory=lambda: [""])

    @property
    def ambiguous(self) -> bool:
        wild = any(each in (".", "(", "") for each in self.firsts)
        return len(self.firsts) > 1 and (wild or len(set(self.firsts)) < len(self.firsts))


class _Scan:
    """One pass over a pattern."""

    def __init__(self, pattern: str) -> None:
        self.text, self.at = pattern, 0

    def fault(self) -> str | None:
        groups = [_Group()]
        while self.at < len(self.text):
            begin, char = self.at, self.text[self.at]
            self.at += 1
            last = _Group()  # what a quantifier behind it would repeat
            if char == "|":
                groups[-1].firsts.append("")
                continue
            if char == "(":
                if len(groups) > MOST_DEPTH:
                    return f"groups nested more than {MOST_DEPTH} deep"
                groups[-1].firsts[-1] = groups[-1].firsts[-1] or "("
                groups.append(_Group())
                if self.text.startswith("?P=", self.at):
                    return "back-references are not supported"
                self.at += 2 if self.text[self.at : self.at + 2] in ("?:", "?=", "?!") else 0
                continue
            if char == ")":
                if len(groups) == 1:
                    return "a group is closed that was not opened"
                last = groups.pop()
            elif char == "\\":
                if self.text[self.at : self.at + 1] in tuple("123456789k"):
                    return "back-references are not supported"
                self.at += 1
            elif char == "[":
                self._skip_class()
            groups[-1].firsts[-1] = groups[-1].firsts[-1] or self.text[begin : self.at]
            if fault := self._quantified(groups[-1], last):
                return fault
        return None if len(groups) == 1 else "a group is not closed"

    def _quantified(self, around: _Group, inner: _Group) -> str | None:
        """Put what was read, with its quantifier, into the group around it."""
        least, most = self._quantifier()
        often = most is None or most > 10
        if often and (inner.varies or inner.ambiguous):
            return "a repetition that can read one text in many ways, as (a+)+ or (a|aa)+, can take for ever"
        times = inner.times * (most or 1)
        if max(least, times) > MOST_REPEATED:
            return f"repeats more than {MOST_REPEATED:,} times"
        around.varies = around.varies or inner.varies or most is None or most - least > 1
        around.times = max(around.times, times)
        return None

    def _quantifier(self) -> tuple[int, int | None]:
        """The least and the most repetitions (None: without bound); (1, 1) where no quantifier stands."""
        rest = self.text[self.at :]
        end = 0
        least: int = 1
        most: int | None = 1
        if rest[:1] in ("*", "+"):
            end, least, most = 1, int(rest[0] == "+"), None
        elif rest[:1] == "?":
            end, least = 1, 0
        elif found := _BRACES.match(rest):
            end, least = found.end(), int(found[1][:6])
            most = least if found[2] is None else int(found[3][:6]) if found[3] else None
        self.at += end + (1 if end and rest[end : end + 1] in ("?", "+") else 0)
        return least, most

    def _skip_class(self) -> None:
        if self.text[self.at : self.at + 1] == "^":
            self.at += 1
        if self.text[self.at : self.at + 1] == "]":
            self.at += 1
        while self.at < len(self.text) and self.text[self.at] != "]":
            self.at += 2 if self.text[self.at] == "\\" else 1
        self.at += 1
