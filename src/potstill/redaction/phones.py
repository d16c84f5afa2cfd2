"""Spans of telephone numbers: what libphonenumber holds for valid, and what is written or announced as one.

The library's own search reads a text character by character; here it is shown only the runs of figures.
Numbers that no plan knows (a typing error, another country's national form) are taken by their shape
(`(751) 954-9268`, `+1-962-819-8200`, `0660 565 36 45`) or by a word beside them ("call", "fax").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from potstill.redaction.rules import Span, Taken, is_word

_EXTENSION = re.compile(r" ?(?:x|ext\.?|extension) ?[0-9]{1,6}(?!\w)", re.IGNORECASE)
_DAY, _MONTH = "(?:0?[1-9]|[12][0-9]|3[01])", "(?:0?[1-9]|1[0-2])"
_DATE = re.compile(
    rf"(?:[0-9]{{4}}([-/.]){_MONTH}\1{_DAY}|(?:{_DAY}([-/.]){_MONTH}\2|{_MONTH}([-/.]){_DAY}\3)(?:[0-9]{{2}}){{1,2}})"
    r"(?:(?![0-9]).{0,3}[0-9]{1,2})?"
)
_SHAPES = re.compile(
    r"\+[ (]?[1-9][0-9]{0,2}[ ().\u2010-\u2015/-]{1,3}[0-9][0-9 ().\u2010-\u2015/-]{5,18}[0-9]"  # +CC and groups
    r"|(?:\+|00)[1-9][0-9]{8,13}"
    r"|001[ .-][0-9]{3}[ .-][0-9]{3}[ .-][0-9]{4}"
    r"|(?:1[ .-])?(?:\([0-9]{3}\) ?|[0-9]{3}([ .-]))[0-9]{3}[ .-][0-9]{4}"  # North America's 3-3-4
    r"|\([0-9]{2,5}\)[ -]?[0-9]{3,4}[ -]?[0-9]{3,4}"
    r"|\(?0[0-9]{1,4}\)?(?:[ /-][0-9]{2,8}){1,4}"  # a trunk prefix and groups
)
_IN_CODE = re.compile(r"(?:[0-9A-Fa-f]{4}-|[0-9][.:])\Z")  # a UUID, a decimal, a time
_AFTER_WORD = re.compile(r"\w-\Z", re.ASCII)
_WENT_BEFORE = re.compile(r"\w-|[0-9][.,:]")
_GOES_ON = re.compile(r"-[A-Fa-f]{0,3}[0-9]|[.,:][0-9]")
_CUE_BEFORE = re.compile(
    r"\b(?:phone|tele?phone|tel|mobile|cell|fax|call(?:ing|ed|s)?|ring|dial|reach(?:ed)?|answering|whats ?app|sms|text"
    r"|hotline|contact)\b[^0-9\n]{0,20}\Z",
    re.IGNORECASE,
)
_CUE_AFTER = re.compile(r"[ ,(\-:]{0,3}(?:office|fax|mobile|cell|home|work|phone)\b", re.IGNORECASE)


def phones(text: str, region: str, numbers: list[Span], taken: Taken) -> Iterator[tuple[int, int]]:
    """Spans of telephone numbers among these long numbers, outside the taken spans."""
    for found, end in numbers:
        first = _first_whole(text, found, end)
        digits = sum(map(str.isdigit, text[first:end]))
        if digits < (9 if _AFTER_WORD.search(text, max(0, first - 2), first) else 7):
            continue
        if _IN_CODE.search(text, max(0, first - 5), first):
            continue
        start = first
        while start and text[start - 1] in "+(" and first - start < 2:
            start -= 1
        if text[start] == "(" and ")" not in text[start:end]:
            start += 1
        if not taken.free(start, end) or _DATE.fullmatch(text, first, end):
            continue
        extension = _EXTENSION.match(text, end)
        valid = _valid(text[max(0, start - 2) : end + 10], region)
        if valid:
            offset = max(0, start - 2)
            yield from (
                (a + offset, max(b + offset, extension.end() if extension and b + offset >= end else 0))
                for a, b in valid
            )
        elif _stands_alone(text, start, extension.end() if extension else end) and (
            _has_shape(text[start:end]) or _is_announced(text, start, extension.end() if extension else end)
        ):
            yield start, extension.end() if extension else end


def _first_whole(text: str, start: int, end: int) -> int:
    """Where the number begins once the figures that end a word (`8a09-7945`) are left out."""
    while start < end and is_word(text, start - 1):
        while start < end and text[start].isdigit():
            start += 1
        while start < end and not text[start].isdigit():
            start += 1
    return start


@lru_cache(maxsize=20_000)
def _valid(window: str, region: str) -> tuple[tuple[int, int], ...]:
    """Spans that libphonenumber holds for valid (`+` numbers of any country, others of the region)."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    return tuple(
        (match.start, match.end)
        for match in PhoneNumberMatcher(window, region, leniency=Leniency.VALID)
        if not _DATE.fullmatch(match.raw_string)
    )


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no letter or figure touches the number, and it is no part of a decimal or of something with dashes."""
    before, after = text[max(0, start - 2) : start], text[end : end + 6]
    if is_word(text, start - 1) or before[-1:] in {"$", "€", "£", "#"} or _WENT_BEFORE.fullmatch(before):
        return False
    return not (is_word(text, end) or _GOES_ON.match(after))


def _has_shape(text: str) -> bool:
    digits = sum(each.isdigit() for each in text)
    return 8 <= digits <= 15 and _SHAPES.fullmatch(text) is not None


def _is_announced(text: str, start: int, end: int) -> bool:
    digits = sum(each.isdigit() for each in text[start:end])
    return 7 <= digits <= 20 and bool(
        _CUE_BEFORE.search(text, max(0, start - 32), start) or _CUE_AFTER.match(text, end)
    )
