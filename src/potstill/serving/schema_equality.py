"""Do two JSON Schemas ask for the same answers? Clients write the schema of a task in words of their own."""

from __future__ import annotations

from typing import Any

from potstill.records import Json, canonical_json

_REMARKS = ("title", "description", "examples", "default", "$schema", "$id", "$comment", "deprecated", "readOnly")
_MOST_DEPTH = 40


def same_schema(one: Any, other: Any) -> bool:
    """Whether they are equal once remarks are left out, references put in, and equal spellings made one.

    `additionalProperties: false` is left out too: a decoder writes no property that the schema does not name.
    """
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    return canonical_json(_plain(one, one, 0)) == canonical_json(_plain(other, other, 0))


def _plain(node: Any, root: Json, depth: int) -> Any:
    if isinstance(node, list):
        return [_plain(each, root, depth + 1) for each in node]
    if not isinstance(node, dict):
        return node
    if depth > _MOST_DEPTH:
        return "deeper"  # a schema that holds itself: equal as far as anybody looks
    ref = node.get("$ref")
    if isinstance(ref, str) and ref.startswith("#/"):
        return _plain(_target(root, ref), root, depth + 1)
    plain: Json = {}
    for key, each in node.items():
        if key in _REMARKS or key in ("$defs", "definitions") or (key == "additionalProperties" and each is False):
            continue
        if key == "properties" and isinstance(each, dict):
            plain[key] = {name: _plain(inner, root, depth + 1) for name, inner in each.items()}
        elif key in ("enum", "required") and isinstance(each, list):
            plain[key] = sorted(each, key=canonical_json)
        else:
            plain[key] = _plain(each, root, depth + 1)
    return _one_spelling(plain)


def _one_spelling(node: Json) -> Json:
    """`anyOf` of bare types as a list of types, a list of one type as that type, `const` as an enum of one."""
    options = node.get("anyOf")
    if isinstance(options, list) and len(node) == 1 and all(isinstance(each, dict) for each in options):
        bare = [each for each in options if list(each) == ["type"] and isinstance(each["type"], str)]
        rich = [each for each in options if each not in bare]
        if len(rich) == 1 and isinstance(rich[0].get("type"), str) and "enum" not in rich[0]:
            return _one_spelling(rich[0] | {"type": [rich[0]["type"], *(each["type"] for each in bare)]})
        if not rich:
            node = {"type": [each["type"] for each in bare]}
    if isinstance(kinds := node.get("type"), list):
        node = node | {"type": sorted(kinds) if len(kinds) > 1 else kinds[0]}
    if "const" in node:
        node = {key: each for key, each in node.items() if key != "const"} | {"enum": [node["const"]]}
    if "enum" in node and node.get("type") in ("string", "integer", "number", "boolean"):
        node = {key: each for key, each in node.items() if key != "type"}
    return node


def _target(root: Json, ref: str) -> Any:
    node: Any = root
    for part in ref.removeprefix("#/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        node = node.get(name) if isinstance(node, dict) else None
    return node
