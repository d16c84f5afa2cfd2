"""Pairs and opinions as token rows: a unit is a pair, or an opinion (beside it an answer given to another prompt).

Prompts and answers become tokens as those of supervised rows do. What can teach nothing, or teaches both a thing and
its opposite, is left out and counted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill import chat
from potstill.preferences import Opinion, Preference

from ..packing import Unit
from ..rows import Row

TOO_LONG = "longer than the window"
IDENTICAL = "both answers are the same"
CONTRADICTED = "contradicted on the same prompt"
NO_STRANGER = "no other prompt's answer fits the window"
_STRANGERS_TRIED = 16


@dataclass(frozen=True, slots=True)
class JudgedUnits:
    """Units that can be learnt from, and how many others were left out, by reason."""

    units: list[Unit]
    left_out: Counter[str]


def pair_units(tokenizer: Any, preferences: Sequence[Preference], window: int) -> JudgedUnits:
    """A unit a pair: the chosen answer's row, then the rejected one's. `window` in tokens, of either.

    The same prompt may come from several conversations once instructions are left out of it: pairs that then say the
    opposite of each other are left out, both of them.
    """
    left_out: Counter[str] = Counter()
    found: list[tuple[Preference, list[int], list[int], list[int]]] = []
    for each in preferences:
        prompt, chosen = chat.prompt_and_completion(tokenizer, each.messages, each.tools, each.chosen)
        _, rejected = chat.prompt_and_completion(tokenizer, each.messages, each.tools, each.rejected)
        if chosen == rejected:
            left_out[IDENTICAL] += 1
        elif len(prompt) + max(len(chosen), len(rejected)) > window:
            left_out[TOO_LONG] += 1
        else:
            found.append((each, prompt, chosen, rejected))
    claims = {(tuple(prompt), tuple(chosen), tuple(rejected)) for _, prompt, chosen, rejected in found}
    units = []
    for each, prompt, chosen, rejected in found:
        if (tuple(prompt), tuple(rejected), tuple(chosen)) in claims:
            left_out[CONTRADICTED] += 1
            continue
        rows = (_row(f"{each.id}/chosen", prompt, chosen), _row(f"{each.id}/rejected", prompt, rejected))
        units.append(Unit(each.id, rows))
    return JudgedUnits(units, left_out)


@dataclass(frozen=True, slots=True)
class OpinionUnits(JudgedUnits):
    """Units of opinions. By their ids: whether the answer is wanted, and the row of a stranger's answer."""

    desirable: dict[str, bool]
    strangers: dict[str, Row]


def opinion_units(tokenizer: Any, opinions: Sequence[Opinion], window: int, seed: int) -> OpinionUnits:
    """A unit an opinion: the row of its answer. Beside each: its prompt with a stranger's answer (of another prompt).

    Strangers are neighbours in a shuffled circle and stay the same in every epoch, so that the reference's view of
    them is computed once. Answers that are both wanted and unwanted on one prompt are left out.
    """
    left_out: Counter[str] = Counter()
    found: list[tuple[Opinion, list[int], list[int]]] = []
    for each in opinions:
        prompt, answer = chat.prompt_and_completion(tokenizer, each.messages, each.tools, each.answer)
        if len(prompt) + len(answer) > window:
            left_out[TOO_LONG] += 1
        else:
            found.append((each, prompt, answer))
    said = {(tuple(prompt), tuple(answer), each.desirable) for each, prompt, answer in found}
    clear = [one for one in found if (tuple(one[1]), tuple(one[2]), not one[0].desirable) not in said]
    left_out[CONTRADICTED] += len(found) - len(clear)
    random.Random(seed).shuffle(clear)
    units, desirable, strangers = [], dict[str, bool](), dict[str, Row]()
    for at, (each, prompt, answer) in enumerate(clear):
        stranger = _stranger(clear, at, window)
        if stranger is None:
            left_out[NO_STRANGER] += 1
            continue
        units.append(Unit(each.id, (_row(each.id, prompt, answer),)))
        desirable[each.id], strangers[each.id] = each.desirable, _row(f"{each.id}/stranger", prompt, stranger)
    return OpinionUnits(units, +left_out, desirable, strangers)


def _stranger(circle: Sequence[tuple[Opinion, list[int], list[int]]], at: int, window: int) -> list[int] | None:
    """The next answer in the circle that was given to another prompt and fits behind this one."""
    prompt = circle[at][1]
    for step in range(1, min(len(circle), _STRANGERS_TRIED + 1)):
        _, other, answer = circle[(at + step) % len(circle)]
        if other != prompt and len(prompt) + len(answer) <= window:
            return answer
    return None


def _row(name: str, prompt: list[int], answer: list[int]) -> Row:
    return Row(name, prompt + answer, ((len(prompt), len(prompt) + len(answer)),))
