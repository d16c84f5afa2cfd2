"""All streams of one version: counted as they come, looked at together, told as figures.

The chance of a false alarm is shared out evenly among the features that are watched, and half of each part goes to the
bounds of its reference, half to the evidence, so that a version's whole life has at most `alpha`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from potstill.records import Json
from potstill.tasks import Task
from potstill.watching.evidence import Bets, Stream, bets_against, bets_against_limit, psi
from potstill.watching.features import CONFIDENCE, Seen, answer_category, bin_names, bin_of
from potstill.watching.profile import Profile, Reference
from potstill.watching.settings import MonitorSettings

INPUTS = ("length", "turns", "script", "prompt", "topic", "likeness")
LIVE: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "confidence": (tuple(bin_names(CONFIDENCE)), True),
    "feedback": (("well", "badly"), False),
    "agreement": (("agrees", "differs"), False),
}
FIRST = "its first values"
FEATURES = (*INPUTS, "answer", *LIVE)


@dataclass
class Feature:
    """One watched feature: what it is compared with (None: not enough seen yet) and its stream."""

    name: str
    reference: Reference | None
    stream: Stream | None = None
    settling: list[int] = field(default_factory=list)
    alarmed: Json | None = None
    against: str = "training"
    calm: str = "as training"  # the state while there is no alarm


class Monitor:
    """Counts of one version against its profile. `features` without a profile's reference settle on live values.

    With `least_agreement` the share of checks that agree is held against that instead of against the first ones.
    """

    def __init__(
        self, profile: Profile, task: Task, settings: MonitorSettings, least_agreement: float | None = None
    ) -> None:
        self.profile, self.task, self.settings = profile, task, settings
        self.features: dict[str, Feature] = {}
        for name in FEATURES:
            if name in LIVE:
                settling = [0] * len(LIVE[name][0])
                self.features[name] = Feature(name, None, settling=settling, against=FIRST)
            elif name in profile.references:
                self.features[name] = self._ready(name, profile.references[name])

        if least_agreement is not None:
            self.features["agreement"] = self._floored("agreement", least_agreement)

    def _ready(self, name: str, reference: Reference) -> Feature:
        stream = Stream(self._bets(name, reference), len(reference.counts), self._window(name))
        against = FIRST if name in LIVE else "training"
        return Feature(name, reference, stream, against=against, calm=f"as {against}")

    def _floored(self, name: str, least: float) -> Feature:
        """A feature whose first category must keep a share of `least`: nothing has to settle."""
        categories, ordered = LIVE[name]
        reference = Reference(categories, (round(least * 1000), round((1 - least) * 1000)), ordered)
        stream = Stream(bets_against_limit(1 - least), len(categories), self._window(name))
        return Feature(name, reference, stream, against=f"at least {least:g}", calm="not below")

    def _window(self, name: str) -> int:
        return self.settings.window if name not in ("feedback", "agreement") else max(20, self.settings.window // 5)

    def _bets(self, name: str, reference: Reference) -> Bets:
        tolerance = self.settings.answer_tolerance if name in ("answer", *LIVE) else self.settings.tolerance
        return bets_against(reference.counts, ordered=reference.ordered, alpha=self._alpha / 2, tolerance=tolerance)

    @property
    def _alpha(self) -> float:
        return self.settings.alpha / len(FEATURES)

    def count_input(self, seen: Seen) -> None:
        for name, place in self.profile.places(seen).items():
            self._count(name, place)

    def count_answer(self, text: str, tools: list[Json]) -> None:
        category = answer_category(self.task, self.task.parse(text, tools), text)
        self._count("answer", self.profile.references["answer"].place(category))

    def count_confidence(self, probability: float) -> None:
        self._count("confidence", bin_of(probability, CONFIDENCE))

    def count_opinion(self, badly: bool) -> None:
        self._count("feedback", int(badly))

    def count_check(self, differs: bool) -> None:
        self._count("agreement", int(differs))

    def _count(self, name: str, place: int) -> None:
        feature = self.features[name]
        if feature.stream is not None:
            feature.stream.add(place)
            return
        feature.settling[place] += 1
        if sum(feature.settling) >= self.settings.settle:
            categories, ordered = LIVE[name]
            reference = Reference(categories, tuple(feature.settling), ordered)
            self.features[name] = self._ready(name, reference)

    def look(self) -> list[Json]:
        """Every feature's figures; a feature that has alarmed stays so for the life of the version."""
        return [self._look(each) for each in self.features.values()]

    def _look(self, feature: Feature) -> Json:
        told: Json = {"feature": feature.name, "against": feature.against}
        if feature.stream is None or feature.reference is None:
            left = self.settings.settle - sum(feature.settling)
            return told | {"count": sum(feature.settling), "alarm": None, "state": f"settling, {left} to come"}
        evidence, grown, since = feature.stream.look()
        limit = math.log(2 / self._alpha)
        if feature.alarmed is None and evidence >= limit and grown is not None:
            feature.alarmed = self._alarm(feature, grown.tolist(), since)
        return told | {
            "count": feature.stream.total,
            "psi": _rounded(psi(feature.reference.counts, feature.stream.recent())),
            "evidence_log10": round(evidence / math.log(10), 3),
            "alarm_at_log10": round(limit / math.log(10), 3),
            "alarm": feature.alarmed,
            "state": "drifted" if feature.alarmed else feature.calm,
        }

    def _alarm(self, feature: Feature, inside: list[bool], since: int) -> Json:
        """What grew, by how much, and since when (events of this stream)."""
        stream, reference = feature.stream, feature.reference
        assert stream is not None
        assert reference is not None
        start = next(each for each in stream.starts if sum(each) == since)
        fresh = [now - then for now, then in zip(stream.counts, start, strict=True)]
        grown = [name for name, member in zip(reference.categories, inside, strict=True) if member]
        share = sum(count for count, member in zip(fresh, inside, strict=True) if member) / max(1, sum(fresh))
        before = sum(count for count, member in zip(reference.counts, inside, strict=True) if member)
        return {
            "what": _named(grown, reference),
            "share": round(share, 4),
            "share_before": round(before / max(1, sum(reference.counts)), 4),
            "after": stream.total,
            "since": since,
        }


def _named(grown: list[str], reference: Reference) -> str:
    """The categories that grew together, told shortly."""
    if len(grown) == len(reference.categories) - 1:
        rest = next(name for name in reference.categories if name not in set(grown))
        return f"all but {rest}"
    if reference.ordered:
        return f"{grown[0]} to {grown[-1]}" if len(grown) > 1 else grown[0]
    return ", ".join(grown[:5]) + (f" and {len(grown) - 5} more" if len(grown) > 5 else "")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
