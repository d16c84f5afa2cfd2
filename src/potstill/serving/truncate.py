"""A conversation that is too long for the window, made to fit: its oldest turns are left out, and the client is told.

What goes goes whole (a tool call with its results, a question with its answer), since half of either means nothing.
Standing instructions and the last user turn stay. Where that one alone is too long, the middle of its longest text is
cut, with a mark where it was: what matters most stands at the beginning and the end (Liu et al., "Lost in the Middle",
2023). Nothing is ever left out silently: the header `x-potstill-truncated` says what, and a counter counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from potstill.prompt import INSTRUCTING
from potstill.recipe import Section
from potstill.records import Json, Message
from potstill.serving.call import Call
from potstill.serving.count_tokens import count_tokens
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

_AROUND = 64  # bytes that a template puts around one message, at most
_TRIES = 8
_LEAST = 200  # characters; a text is not cut shorter than this


class TruncateSettings(Section):
    """Off by default: a request that is too long is refused."""

    reserve_tokens: Annotated[
        int | None, Field(ge=1, description="kept free for the answer; unset: the contract's max_tokens")
    ] = None
    cut: Annotated[bool, Field(description="cut the middle of one text that is too long by itself")] = True


class Truncate(Step):
    def __init__(self, server: Server, settings: TruncateSettings) -> None:
        self._settings, self._meter = settings, server.meter

    async def before(self, call: Call) -> None:
        """Make `call.upstream["messages"]` fit; what cannot be made to is refused by the engine."""
        contract = call.model.served.contract
        asked = call.body.get("max_completion_tokens") or call.body.get("max_tokens") or contract.max_tokens
        room = contract.window - min(int(asked), self._settings.reserve_tokens or contract.max_tokens)
        fitting = Fitting(call, room)
        if await fitting.fits(call.upstream["messages"]):
            return
        turns, characters = await fitting.shorten(self._settings.cut)
        if turns:
            self._meter.truncated.labels("turns").inc(turns)
        if characters:
            self._meter.truncated.labels("characters").inc(characters)
        call.http.extra.append((b"x-potstill-truncated", f"turns={turns}, characters={characters}".encode()))


def make(server: Server) -> Step | None:
    return Truncate(server, server.settings.truncate) if server.settings.truncate is not None else None


class Fitting:
    """One call's conversation against `room` tokens."""

    def __init__(self, call: Call, room: int) -> None:
        self._call, self._room = call, room
        self._engine = call.model.engine
        self._tools: list[Json] = call.body.get("tools") or []
        self._fixed = len(call.model.served.contract.chat_template.encode())

    async def fits(self, messages: Sequence[Message]) -> bool:
        """Whether they fit; an engine that cannot be asked is left to judge by itself."""
        # No token is shorter than a byte: most requests are short enough without counting.
        size = sum(_size(each) + _AROUND for each in messages) + (0 if not self._tools else self._room)
        if size + self._fixed <= self._room:
            return True
        found = await count_tokens(self._engine, messages, self._tools)
        return found is None or found <= self._room

    async def shorten(self, may_cut: bool) -> tuple[int, int]:
        """Leave out as little as will do; the groups left out, and the characters cut from what stayed."""
        messages = self._call.upstream["messages"]
        groups = droppable(messages)
        dropped = await self._fewest(messages, groups)
        messages, cut = without(messages, groups[:dropped]), 0
        if may_cut and dropped == len(groups) and not await self.fits(messages):
            messages, cut = await self._cut(messages)
        self._call.upstream["messages"] = messages
        return dropped, cut

    async def _fewest(self, messages: list[Message], groups: list[list[int]]) -> int:
        """The fewest of the oldest groups without which the rest fits; all of them where that does not help either."""
        low, high = min(1, len(groups)), len(groups)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if await self.fits(without(messages, groups[:middle])) else (middle + 1, high)
        return low

    async def _cut(self, messages: list[Message]) -> tuple[list[Message], int]:
        """The longest text that is no standing instruction, without its middle."""
        spoken = [at for at, each in enumerate(messages) if each["role"] not in INSTRUCTING]
        at = max(spoken, key=lambda each: len(messages[each].get("content") or ""), default=None)
        text: str = messages[at].get("content") or "" if at is not None else ""
        if at is None or len(text) <= _LEAST:
            return messages, 0

        def kept(characters: int) -> list[Message]:
            return [*messages[:at], messages[at] | {"content": without_middle(text, characters)}, *messages[at + 1 :]]

        low, high = _LEAST, len(text)
        for _ in range(_TRIES):
            middle = (low + high) // 2
            low, high = (middle, high) if await self.fits(kept(middle)) else (low, middle)
        return kept(low), len(text) - low


def droppable(messages: Sequence[Message]) -> list[list[int]]:
    """The places of what may be left out, oldest first, each group a whole.

    A user's turn goes with everything that answered it. Behind the last user turn, where an agent may have called many
    tools, each call goes with its results; the newest of them stays, and so do that user turn and all instructions.
    """
    spoken = [at for at, each in enumerate(messages) if each["role"] not in INSTRUCTING]
    last = max((at for at in spoken if messages[at]["role"] == "user"), default=-1)
    older: list[list[int]] = []
    rounds: list[list[int]] = []
    for at in spoken:
        role = messages[at]["role"]
        if at < last:
            older += [[]] if role == "user" or not older else []
            older[-1].append(at)
        elif at > last:
            rounds += [[]] if role != "tool" or not rounds else []
            rounds[-1].append(at)
    return older + rounds[:-1]


def without(messages: Sequence[Message], groups: Sequence[Sequence[int]]) -> list[Message]:
    gone = {at for group in groups for at in group}
    return [each for at, each in enumerate(messages) if at not in gone]


def without_middle(text: str, keep: int) -> str:
    """The first and last `keep` characters together, half each, with a mark between them."""
    if keep >= len(text):
        return text
    head = (keep + 1) // 2
    tail = keep - head
    return (
        f"{text[:head]}\n[... {len(text) - keep:,} characters left out ...]\n{text[len(text) - tail :] if tail else ''}"
    )


def _size(message: Message) -> int:
    calls = message.get("tool_calls") or []
    words = sum(len(each["function"]["name"]) + len(each["function"]["arguments"].encode()) + 200 for each in calls)
    return len((message.get("content") or "").encode()) + words
