"""Which answer people prefer to which: from corrections, thumbs and answers asked for again.

Give the exchanges of training and validation alone, in the order of the log: nothing of the test split may be learnt.
A preference never contradicts a stronger one on the same prompt: a correction weighs more than thumbs, thumbs more
than a regenerated answer; where equals contradict each other, neither counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from potstill.preferences import Opinion, Preference, PreferenceSource
from potstill.prompt import PromptRule
from potstill.records import NOT_WHOLE, Exchange
from potstill.tasks import Task

from .duplicates import components, link
from .fingerprints import hash64
from .opinions import thumb, verdict
from .turns import turn_hashes

STRENGTH: tuple[PreferenceSource, ...] = ("correction", "thumbs", "regenerated")


@dataclass(frozen=True, slots=True)
class Preferences:
    """Pairs and opinions, by request in the order in which each came first; how many were not made, by reason."""

    pairs: list[Preference]
    opinions: list[Opinion]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Said:
    """An exchange with its answer read: `text` is canonical if valid, else raw; `corrected` a valid correction."""

    row: int
    exchange: Exchange
    text: str
    valid: bool
    corrected: str | None

    @property
    def correct_as_is(self) -> bool:
        return self.exchange.correction is None or self.corrected == self.text


@dataclass(frozen=True, slots=True)
class _Pair:
    source: PreferenceSource
    chosen: str
    rejected: str
    better: _Said
    worse: _Said


def find_preferences(exchanges: Iterable[Exchange], task: Task, rule: PromptRule) -> Preferences:
    """Every preference that the exchanges show. Invalid and cut-off answers are never chosen nor desirable."""
    left_out: Counter[str] = Counter()
    pairs: list[Preference] = []
    opinions: list[Opinion] = []
    for said in _by_request(exchanges, task, left_out):
        found = [*_corrected(said), *_thumbed(said), *_regenerated(said)]
        pairs += [_preference(each, rule) for each in _agreeing(found, left_out)]
        opinions += [each for one in said for each in _opinions(one, rule, left_out)]
    return Preferences(pairs, opinions, left_out)


def _by_request(exchanges: Iterable[Exchange], task: Task, left_out: Counter[str]) -> list[list[_Said]]:
    """Exchanges that answer the same messages under the same tools, in the order in which a request came first."""
    groups: dict[tuple[int, int], list[_Said]] = defaultdict(list)
    for row, each in enumerate(exchanges):
        groups[len(each.messages), turn_hashes(each.messages, each.tools)[-1]].append(_read(row, each, task, left_out))
    return list(groups.values())


def _read(row: int, exchange: Exchange, task: Task, left_out: Counter[str]) -> _Said:
    raw = task.text_of(exchange.answer)
    parsed = task.parse(raw, exchange.tools)
    valid = parsed.valid and exchange.finish_reason not in NOT_WHOLE
    corrected = None
    if exchange.correction is not None:
        wanted = task.from_gold(exchange.correction)
        if wanted.valid:  # against the tools too, which from_gold does not know
            wanted = task.parse(task.canonical(wanted.value), exchange.tools)
        corrected = task.canonical(wanted.value) if wanted.valid else None
        left_out["the correction is invalid"] += corrected is None
    return _Said(row, exchange, task.canonical(parsed.value) if valid else raw, valid, corrected)


def _corrected(said: Sequence[_Said]) -> list[_Pair]:
    """The newest correction over the teacher's answer, where they differ."""
    return [
        _Pair("correction", each.corrected, each.text, each, each)
        for each in said
        if each.corrected is not None and each.text and each.corrected != each.text
    ]


def _thumbed(said: Sequence[_Said]) -> list[_Pair]:
    """The answer with most thumbs up (the later of equals) over each answer with more thumbs down than up."""
    balance: Counter[str] = Counter()
    newest: dict[str, _Said] = {}
    for each in said:
        votes = [thumb(one) for one in each.exchange.feedback]
        balance[each.text] += votes.count(True) - votes.count(False)
        newest[each.text] = each
    liked = [text for text, one in newest.items() if balance[text] > 0 and one.valid and one.correct_as_is]
    if not liked:
        return []
    best = max(liked, key=lambda text: (balance[text], newest[text].row))
    return [
        _Pair("thumbs", best, text, newest[best], one)
        for text, one in newest.items()
        if balance[text] < 0 and text and text != best
    ]


def _regenerated(said: Sequence[_Said]) -> list[_Pair]:
    """The last answer over each earlier, different one, where the same person asked again and no feedback contradicts.

    The same person: the same logged conversation or user. Answers of one time were not asked for one after another.
    """
    found = []
    for asked in _by_asker(said):
        last, earlier = asked[-1], asked[:-1]
        if not last.valid or not last.correct_as_is or verdict(last.exchange) is False:
            continue
        seen = {last.text, ""}
        for each in reversed(earlier):
            if each.text in seen or verdict(each.exchange) is True or each.corrected == each.text:
                continue
            seen.add(each.text)
            found.append(_Pair("regenerated", last.text, each.text, last, each))
    return found


def _by_asker(said: Sequence[_Said]) -> list[list[_Said]]:
    """Answers to one request by who asked, oldest first; in the log's order where a time is missing.

    Left out are those whose newest answer is not one (several of the same time).
    """
    import numpy as np

    if len(said) < 2:
        return []
    named = ([each.exchange.metadata.get(name) for each in said] for name in ("conversation", "user"))
    keys = [np.array([0 if key in (None, "") else hash64(str(key)) for key in each], np.uint64) for each in named]
    groups: dict[int, list[_Said]] = defaultdict(list)
    for person, each in zip(components(len(said), [link(each) for each in keys]).tolist(), said, strict=True):
        groups[person].append(each)
    out = []
    for members in groups.values():
        times = [time for time in (_time(each.exchange) for each in members) if time is not None]
        if len(times) == len(members):
            ranked = sorted(range(len(members)), key=lambda at: (times[at], at))
            if len(ranked) > 1 and times[ranked[-1]] == times[ranked[-2]]:
                continue
            members = [members[at] for at in ranked]
        if len(members) > 1:
            out.append(members)
    return out


def _time(exchange: Exchange) -> datetime | None:
    try:
        found = datetime.fromisoformat(exchange.time or "")
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _agreeing(pairs: Sequence[_Pair], left_out: Counter[str]) -> list[_Pair]:
    """Each pair of answers to one request once, from its strongest source, without those that are contradicted."""
    claimed: dict[tuple[str, str], _Pair] = {}
    for source in STRENGTH:
        own = {(each.chosen, each.rejected): each for each in pairs if each.source == source}
        for (chosen, rejected), each in own.items():
            if (rejected, chosen) in own or (rejected, chosen) in claimed:
                left_out[f"{source}: contradicted on the same prompt"] += 1
            else:
                claimed.setdefault((chosen, rejected), each)
    return list(claimed.values())


def _preference(pair: _Pair, rule: PromptRule) -> Preference:
    source = pair.worse.exchange
    ids = [source.id] if pair.better is pair.worse else [source.id, pair.better.exchange.id]
    return Preference(
        id=":".join([pair.source, *ids]),
        conversation=source.conversation,
        messages=rule.apply(source.messages),
        chosen=pair.chosen,
        rejected=pair.rejected,
        source=pair.source,
        tools=source.tools,
        metadata={**source.metadata, "rejected_id": source.id, "chosen_id": pair.better.exchange.id},
    )


def _opinions(said: _Said, rule: PromptRule, left_out: Counter[str]) -> list[Opinion]:
    """A correction makes itself desirable and another answer undesirable; else thumbs speak of the answer."""
    exchange, judged = said.exchange, verdict(said.exchange)
    found: list[tuple[str, bool, PreferenceSource]] = []
    if said.corrected is not None:
        if judged is not None and judged != (said.corrected == said.text):
            left_out["opinions: thumbs contradict the correction"] += 1
        found.append((said.corrected, True, "correction"))
        if said.text != said.corrected:
            found.append((said.text, False, "correction"))
    elif judged is not None:
        if judged and not (said.valid and said.correct_as_is):
            left_out["opinions: thumbs up on an answer that is invalid or corrected"] += 1
        else:
            found.append((said.text, judged, "thumbs"))
    return [
        Opinion(
            id=f"{exchange.id}:{'desirable' if desirable else 'undesirable'}",
            conversation=exchange.conversation,
            messages=rule.apply(exchange.messages),
            answer=answer,
            desirable=desirable,
            source=source,
            tools=exchange.tools,
            metadata=exchange.metadata,
        )
        for answer, desirable, source in found
        if answer
    ]
