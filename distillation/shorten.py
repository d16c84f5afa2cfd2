"""Prompts made to fit: instructions and tools stay whole, the newest turns stay, and what was cut is said.

What goes first is the oldest turn, as in a chat that scrolls. A call and its results are one turn: a result whose call
is gone, or a call that nobody answered, is something that no model has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from potstill.prompt import INSTRUCTING
from potstill.records import Json, Message, canonical_json

from .fingerprints import prompt_text

MARKER = "\n[... cut ...]\n"
Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Cut:
    """What was cut. Lengths are in what the caller counts by (tokens, characters).

    `fits` is false when even instructions, tools and the bare marker are longer than the limit: such a row cannot be
    shortened honestly and should be left out.
    """

    before: int
    after: int
    dropped: tuple[int, ...]  # numbers of the messages that are gone
    shortened: tuple[int, ...]  # numbers (in the messages as given) of those that lost their middle
    fits: bool

    def __str__(self) -> str:
        said = [f"{len(self.dropped)} older messages dropped"] if self.dropped else []
        said += [f"the middle of {len(self.shortened)} messages cut"] if self.shortened else []
        said += [] if self.fits else ["still too long: instructions and tools alone pass the limit"]
        return f"{self.before} -> {self.after}: {'; '.join(said)}"


def shorten(
    messages: Sequence[Message], limit: int, count: Count, tools: Sequence[Json] = ()
) -> tuple[list[Message], Cut | None]:
    """The messages within `limit`, and what was cut (None: nothing).

    A message counts as `count` of its role, text and calls (`prompt_text`), `tools` as `count` of their JSON. Always
    kept: instructions (system, developer), the newest turn, and the user's newest turn, because templates want one and
    an agent's steps make no sense without the question. Then older turns follow, newest first, until one does not fit.
    When what is always kept is too long by itself, the longest of its texts (never an instruction) lose their middle.
    The messages given are not changed.
    """
    sizes = [_size(each, count) for each in messages]
    reserved = count(canonical_json(list(tools))) if tools else 0
    before = reserved + sum(sizes)
    if before <= limit:
        return list(messages), None
    instructions = {at for at, each in enumerate(messages) if each["role"] in INSTRUCTING}
    turns = turns_of(messages)
    pinned = _pinned(messages, turns)
    room = limit - reserved - sum(sizes[at] for at in instructions.union(*(turns[turn] for turn in pinned)))
    kept = instructions.union(*(turns[turn] for turn in _newest(messages, turns, pinned, sizes, room)))
    chosen = sorted(kept)
    result = [messages[at] for at in chosen]
    shortened: list[int] = []
    if room < 0:
        cuttable = [at for at, number in enumerate(chosen) if number not in instructions]
        shortened = [chosen[at] for at in _cut_middles(result, cuttable, limit - reserved, count)]
    after = reserved + sum(_size(each, count) for each in result)
    dropped = tuple(at for at in range(len(messages)) if at not in kept)
    return result, Cut(before, after, dropped, tuple(sorted(shortened)), after <= limit)


def turns_of(messages: Sequence[Message]) -> list[list[int]]:
    """Message numbers of each turn, in order, instructions left out; tool results belong to the turn of their call."""
    turns: list[list[int]] = []
    of_call: dict[str, int] = {}
    for at, message in enumerate(messages):
        if message["role"] in INSTRUCTING:
            continue
        if message["role"] in ("tool", "function") and turns:
            turns[of_call.get(str(message.get("tool_call_id")), len(turns) - 1)].append(at)
            continue
        for call in message.get("tool_calls") or []:
            of_call[str(call.get("id"))] = len(turns)
        turns.append([at])
    return turns


def _pinned(messages: Sequence[Message], turns: Sequence[Sequence[int]]) -> list[int]:
    """The turn with the newest message, and the newest that a user wrote."""
    by_user = [at for at, turn in enumerate(turns) if messages[turn[0]]["role"] == "user"]
    return sorted({max(range(len(turns)), key=lambda at: turns[at][-1]), *by_user[-1:]}) if turns else []


def _newest(
    messages: Sequence[Message], turns: Sequence[Sequence[int]], pinned: Sequence[int], sizes: Sequence[int], room: int
) -> list[int]:
    """The pinned turns and as many of the newest as fit into `room`, beginning with one of the user's.

    An answer whose question is gone is dropped too: many chat templates refuse a conversation that begins so.
    """
    kept = list(pinned)
    for at in reversed(range(len(turns))):
        if at in pinned:
            continue
        room -= sum(sizes[message] for message in turns[at])
        if room < 0:
            break
        kept.append(at)
    by_user = [at for at in kept if messages[turns[at][0]]["role"] == "user"]
    return [at for at in kept if at in pinned or at >= min(by_user, default=0)]


def _size(message: Message, count: Count) -> int:
    return count(prompt_text([message]))


Slot = tuple[int, int | None]  # message, and which part of its content (None: the content is one text)


def _cut_middles(messages: list[Message], cuttable: Sequence[int], limit: int, count: Count) -> list[int]:
    """Cut the longest texts in `messages` (in place, as new messages) until they fit; which ones were cut."""
    cut: list[int] = []
    slots = [slot for at in cuttable for slot in _slots(messages, at)]
    for slot in sorted(slots, key=lambda slot: (-len(_text(messages, slot)), slot)):
        text = _text(messages, slot)
        others = sum(_size(each, count) for at, each in enumerate(messages) if at != slot[0])
        if others + _size(messages[slot[0]], count) <= limit:
            break
        if len(text) <= len(MARKER):
            continue  # cutting would not make it shorter
        messages[slot[0]] = _longest_fit(messages[slot[0]], slot, limit - others, count)
        cut.append(slot[0])
    return list(dict.fromkeys(cut))


def _longest_fit(message: Message, slot: Slot, room: int, count: Count) -> Message:
    """The message with as much of the text's two ends as leaves it within `room`; the marker alone if nothing does."""
    text = _text([message], (0, slot[1]))
    low, high = 0, len(text) - len(MARKER)
    while low < high:  # the most characters that fit, as far as more characters never count less
        middle = (low + high + 1) // 2
        if _size(_with_text(message, slot[1], _middle_cut(text, middle)), count) <= room:
            low = middle
        else:
            high = middle - 1
    return _with_text(message, slot[1], _middle_cut(text, low))


def _middle_cut(text: str, keep: int) -> str:
    """`keep` characters of the text around the marker, half from each end."""
    head = (keep + 1) // 2
    return text[:head] + MARKER + (text[len(text) - (keep - head) :] if keep > head else "")


def _slots(messages: Sequence[Message], at: int) -> list[Slot]:
    """Where the message has text that may be cut: its content, never the arguments of a call (half a JSON is none)."""
    content = messages[at].get("content")
    if isinstance(content, str):
        return [(at, None)]
    if isinstance(content, list):
        return [(at, part) for part, each in enumerate(content) if isinstance(each, dict) and _is_text(each)]
    return []


def _is_text(part: Json) -> bool:
    return isinstance(part.get("text"), str)


def _text(messages: Sequence[Message], slot: Slot) -> str:
    content = messages[slot[0]]["content"]
    return str(content if slot[1] is None else content[slot[1]]["text"])


def _with_text(message: Message, part: int | None, text: str) -> Message:
    if part is None:
        return {**message, "content": text}
    parts = [{**each, "text": text} if at == part else each for at, each in enumerate(message["content"])]
    return {**message, "content": parts}
