"""GBNF, the grammar notation of llama.cpp, for what a task's constraint allows.

Notation: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def choices_grammar(choices: Sequence[str]) -> str:
    """A grammar whose language is exactly these texts; raises ValueError when there are none."""
    if not choices:
        raise ValueError("a grammar of no choices allows no answer; expected at least one label")
    return _grammar_of(tuple(choices))


@lru_cache(maxsize=64)
def _grammar_of(choices: tuple[str, ...]) -> str:
    return "root ::= " + " | ".join(f'"{_literal(choice)}"' for choice in dict.fromkeys(choices))


def _literal(text: str) -> str:
    return "".join(_ESCAPES.get(each) or _character(each) for each in text)


def _character(each: str) -> str:
    # Printable ASCII stands for itself; the rest is spelt out, so that no control character or odd line separator
    # ends a rule early and a log shows what is asked for.
    point = ord(each)
    if 0x20 <= point < 0x7F:
        return each
    return f"\\u{point:04X}" if point <= 0xFFFF else f"\\U{point:08X}"
