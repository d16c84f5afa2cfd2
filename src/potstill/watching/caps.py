"""How many opinions of one key count, so that nobody's are more than their share of what is counted."""

from __future__ import annotations

from collections.abc import Mapping

from potstill.watching.settings import PoisonSettings

ROOM = 1.5  # among few keys one may have half as much again as an even part


def most_of_a_key(given: Mapping[str, int], settings: PoisonSettings) -> int:
    """The largest number that is at most `per_key_share` of what counts once every key is cut to it.

    The share is of what is *left*: a key that floods the traffic gains nothing by it. Where fewer keys than 15 give
    anything, the share is 1.5 over their number (0.1 of ten would leave nothing of nine equals); one key alone is not
    capped. Never below `per_key_least`.
    """
    if not given:
        return settings.per_key_least
    share = min(1.0, max(settings.per_key_share, ROOM / len(given)))
    if share >= 1:
        return sum(given.values())
    most = max(given.values())
    while True:
        counted = sum(count if key in settings.trusted else min(count, most) for key, count in given.items())
        lower = int(share * counted)
        if lower >= most or most <= settings.per_key_least:
            return max(most, settings.per_key_least)
        most = lower
