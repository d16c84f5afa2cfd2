"""Reading a thumb: one meaning for the forms in which logs write it."""

from __future__ import annotations

from potstill.records import Exchange, Feedback

_UP = ("up", "good", "positive", "thumbs_up", "like", "true", "1")
_DOWN = ("down", "bad", "negative", "thumbs_down", "dislike", "false", "0", "-1")


def thumb(opinion: Feedback) -> bool | None:
    """True for a thumb up, False for one down, None for any other feedback or a value that is neither."""
    if opinion.kind != "thumbs":
        return None
    if isinstance(opinion.value, bool | int | float):
        return opinion.value > 0
    said = str(opinion.value).strip().casefold()
    return True if said in _UP else False if said in _DOWN else None


def verdict(exchange: Exchange) -> bool | None:
    """What the thumbs on an answer say together: up, down, or None where there are none or they disagree."""
    found = {thumb(each) for each in exchange.feedback} - {None}
    return found.pop() if len(found) == 1 else None
