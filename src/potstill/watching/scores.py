"""Live scores by version: of the answers that people judged, how many they found right, with nobody's say too large."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime

from potstill.records import Exchange
from potstill.tasks import Task
from potstill.watching.caps import most_of_a_key
from potstill.watching.intake import UNKNOWN
from potstill.watching.opinions import judged_right, right_of
from potstill.watching.proportions import Share
from potstill.watching.settings import PoisonSettings

Keys = Mapping[tuple[str, str | None, str], str]


def live_scores(
    exchanges: Iterable[Exchange], task: Task, artifacts: Iterable[str], since: datetime, keys: Keys,
    settings: PoisonSettings,
) -> dict[str, Share]:  # fmt: skip
    """The share that was found right of each artifact's answers since a moment; one opinion an answer, the newest.

    Of one key at most `per_key_share` of an artifact's opinions count (never fewer than `per_key_least`), chosen by the
    hash of the answer's id: whoever owns one key can neither promote nor roll back alone.
    """
    wanted = set(artifacts)
    judged: dict[str, list[tuple[str, str, bool]]] = {each: [] for each in wanted}
    for exchange in exchanges:
        artifact = exchange.metadata.get("artifact")
        if artifact not in wanted or not _since(exchange.time, since) or _by_another(exchange):
            continue
        right = judged_right(exchange, task)
        if right is not None:
            judged[artifact].append((_key_of(exchange, task, keys), exchange.id, right))
    return {artifact: _share(found, settings) for artifact, found in judged.items()}


def _by_another(exchange: Exchange) -> bool:
    """Whether the large model or a cache gave the answer: it says nothing of the student."""
    return exchange.metadata.get("answered_by") not in (None, "", "engine", "canary")


def _since(time: str | None, since: datetime) -> bool:
    return time is not None and datetime.fromisoformat(time.replace("Z", "+00:00")) >= since


def _key_of(exchange: Exchange, task: Task, keys: Keys) -> str:
    answer = task.text_of(exchange.answer)
    for opinion in reversed(exchange.feedback):
        if right_of(opinion, answer, task) is not None:
            known = keys.get((exchange.id, opinion.time, opinion.kind))
            return known or str(exchange.metadata.get("key") or opinion.by or exchange.metadata.get("user") or UNKNOWN)
    return UNKNOWN


def _share(judged: list[tuple[str, str, bool]], settings: PoisonSettings) -> Share:
    by_key: dict[str, list[tuple[bytes, bool]]] = defaultdict(list)
    for key, identity, right in judged:
        by_key[key].append((hashlib.sha256(identity.encode()).digest(), right))
    most = most_of_a_key({key: len(found) for key, found in by_key.items()}, settings)
    counted = [
        right
        for key, found in by_key.items()
        for _, right in (sorted(found) if key in settings.trusted else sorted(found)[:most])
    ]
    return Share(sum(counted), len(counted))
