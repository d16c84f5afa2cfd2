"""Prompt internalisation: which parts of a prompt are standing instructions, and how to leave them out.

A model trained without its instructions must be served without them, by the very same rule. So the rule is data:
it is found once by `find_rule`, travels in the contract, and is applied by `PromptRule.apply` everywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os.path import commonprefix
from typing import Any

from potstill.records import Json, Message

_BEFORE = ("\n", '"', ": ", "<<<", "```")
_AFTER = ("\n", '"', ">>>", "```")
MIN_STATIC = 24  # characters; shorter common beginnings are how people write, not instructions
MIN_SHARE = 0.002  # a wording counts as standing when this share of the exchanges has it, and at least...
MIN_COUNT = 5  # ...this many
INSTRUCTING = ("system", "developer")
_PLACEHOLDER = re.compile(r"<[A-Z_]+_\d+>")


def joined(content: Any) -> Any:
    """A message's content with several text parts made one text, a line each; other content as it is."""
    if isinstance(content, list):
        return "\n".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content


@dataclass(frozen=True, slots=True)
class Drop:
    """A whole message to leave out: this role with exactly this text, or a text with one of these hashes.

    A log is redacted before anything is learnt of it, live prompts are not: where a standing text held personal data,
    `text` is its redacted form and `sha256` tells the live one without keeping it.
    """

    role: str
    text: str
    sha256: tuple[str, ...] = ()

    def matches(self, role: str, content: Any) -> bool:
        if role != self.role or not isinstance(content, str):
            return False
        return content == self.text or (bool(self.sha256) and sha256_text(content) in self.sha256)


@dataclass(frozen=True, slots=True)
class Strip:
    """The standing text around what varies: a message of this role keeps only what stands between."""

    role: str
    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class PromptRule:
    """`apply` gives the prompt that the student sees; the empty rule keeps every message as it is."""

    drops: tuple[Drop, ...] = ()
    strips: tuple[Strip, ...] = ()

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        """Messages without the standing instructions; never empties a prompt."""
        if not self.drops and not self.strips:
            return list(messages)
        kept = [self._stripped(each) for each in messages if not self._dropped(each)]
        return kept or list(messages)

    def _dropped(self, message: Message) -> bool:
        role, content = message["role"], message.get("content")
        for drop in self.drops:  # noqa: SIM110 (a million rows pass here: a generator costs more than what it checks)
            if drop.role == role and drop.matches(role, joined(content)):
                return True
        return False

    def _stripped(self, message: Message) -> Message:
        role = message["role"]
        for strip in self.strips:
            if strip.role != role:
                continue
            content = joined(message.get("content"))
            if (
                isinstance(content, str)
                and len(content) >= len(strip.prefix) + len(strip.suffix)
                and content.startswith(strip.prefix)
                and content.endswith(strip.suffix)
            ):
                return {**message, "content": content[len(strip.prefix) : len(content) - len(strip.suffix)]}
        return message

    def recognises(self, messages: Sequence[Message]) -> bool:
        """Whether the prompt carries no instructions besides what the rule knows."""
        return all(each["role"] not in INSTRUCTING or self._dropped(each) for each in messages)

    def to_json(self) -> Json:
        drops = [{"role": each.role, "text": each.text, "sha256": list(each.sha256)} for each in self.drops]
        return {"drops": drops, "strips": [asdict(each) for each in self.strips]}

    @classmethod
    def from_json(cls, data: Json) -> PromptRule:
        return cls(
            tuple(Drop(each["role"], each["text"], tuple(each.get("sha256", ()))) for each in data.get("drops", [])),
            tuple(Strip(**each) for each in data.get("strips", [])),
        )


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def instructions(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Role and text of every message that instructs."""
    found = [(each["role"], joined(each.get("content"))) for each in messages if each["role"] in INSTRUCTING]
    return [(role, text) for role, text in found if isinstance(text, str)]


Parts = tuple[list[tuple[str, str]], str | None]


def parts_of(messages: Sequence[Message]) -> Parts:
    """What `find_rule` looks at: every instructing (role, text), and the text of the first user turn."""
    first = next((joined(each.get("content")) for each in messages if each["role"] == "user"), None)
    return instructions(messages), first if isinstance(first, str) else None


def find_rule(
    prompts: Iterable[Parts], originals: Mapping[tuple[str, str], Collection[str]] | None = None
) -> PromptRule:
    """The standing instructions of a log: system texts said again and again, and the frames of first user turns.

    `prompts` are the `parts_of` each. `originals` gives, for a redacted (role, text), the sha256 of what it was before.
    A frame that redaction has touched could not be told in a live prompt: such user turns are kept whole.
    """
    standing: Counter[tuple[str, str]] = Counter()
    firsts: list[str] = []
    total = 0
    for said, first in prompts:
        total += 1
        standing.update(said)
        if first is not None:
            firsts.append(first)
    enough = max(MIN_COUNT, int(total * MIN_SHARE))
    hashes = originals or {}
    drops = [
        Drop(*said, tuple(sorted(hashes.get(said, ())))) for said, count in standing.most_common() if count >= enough
    ]
    frames = [frame for frame in _frames(firsts, enough) if not _PLACEHOLDER.search("".join(frame))]
    strips = [Strip("user", prefix, suffix) for prefix, suffix in frames]
    return PromptRule(tuple(drops), tuple(strips))


def _common_beginning(texts: Sequence[str]) -> str:
    return commonprefix(texts)  # noqa: RUF071 (texts, not paths)


def _frames(texts: Sequence[str], enough: int) -> list[tuple[str, str]]:
    """The machine-made text around each group of user turns that begin alike.

    People begin alike too ("I would like a table for ..."), so a frame counts only when its beginning spans lines
    and it is cut back to where a template would put its slot: after a line end, a quote or a colon.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for text in set(texts):
        if len(text) >= MIN_STATIC:
            groups[text[:MIN_STATIC]].append(text)
    frames = []
    for members in groups.values():
        prefix = _common_beginning(members)
        prefix = prefix[: max((prefix.rfind(mark) + len(mark) for mark in _BEFORE if mark in prefix), default=0)]
        if len(members) < enough or len(prefix) < MIN_STATIC or "\n" not in prefix:
            continue
        suffix = _common_beginning([text[len(prefix) :][::-1] for text in members])[::-1]
        starts = [suffix.find(mark) for mark in _AFTER if mark in suffix]
        frames.append((prefix, suffix[min(starts) :] if starts else ""))
    return sorted(frames, key=lambda frame: (-len(frame[0]), frame))
