"""Spans of structured personal data and secrets in a text, each kind by rule and by its checksum where it has one.

Speed comes from the shape of the patterns: Python's `re` skips ahead at memory speed only when a pattern begins with a
literal or a set of characters, so what stands to the left of a finding is looked at afterwards, and a kind is not
tried at all when a literal that it needs is missing.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal

Kind = Literal["URL", "API_KEY", "EMAIL", "IBAN", "CARD", "NATIONAL_ID", "IP", "PHONE"]
# Order matters: what stands inside another kind (an address in a URL) belongs to the outer one.
KINDS: tuple[Kind, ...] = ("URL", "API_KEY", "EMAIL", "IBAN", "CARD", "NATIONAL_ID", "IP", "PHONE")
Span = tuple[int, int]

_ESCAPE = re.compile(r"(?<!\\)\\+(?:[nrtbf]|u[0-9a-fA-F]{4})|;base64,[A-Za-z0-9+/=]*")
_ACCENTED = re.compile(r"\\u0(?:0[c-fC-F]|1|2[0-4])[0-9a-fA-F]+\Z")
_LOCAL = "A-Za-z0-9._%+'\\-\u00c0-\u02af\u0370-\u1fff"
_DOMAIN = re.compile(
    r"[^\W_](?:[\w-]*[^\W_])?(?:\.[^\W_](?:[\w-]*[^\W_])?)*\.(?:[^\W\d_]{2,}|xn--[a-z0-9-]+)", re.IGNORECASE
)
_LOCAL_END = re.compile(rf"[{_LOCAL}]+\Z")
_URL = re.compile(r"://[^\s<>\"']+")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*\Z")
URL_SECRET = (
    r"://[^/\s\":]*:[^/\s\"]*@|[?&#;](?:[\w-]{0,40}(?:token|secret|passw|apikey|api_key|signature|auth|session|credential)"
    r"[\w-]{0,40}|key|sig|code|pwd)=[^&\s\"]|hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/"
)
_URL_SECRET = re.compile(URL_SECRET, re.IGNORECASE)
# What a key begins with, and what follows. The literal says in one `in` whether the pattern is worth a try.
_KEYS: dict[str, dict[str, str]] = {  # first the character that all of a group have
    "-": {
        "sk-": r"sk-[A-Za-z0-9_-]{16,}",
        "glpat-": r"glpat-[A-Za-z0-9_-]{16,}",
        "xox": r"xox[abeprs]-[A-Za-z0-9-]{10,}",
        "GOCSPX-": r"GOCSPX-[A-Za-z0-9_-]{20,}",
        "pypi-": r"pypi-[A-Za-z0-9_-]{30,}",
        "nvapi-": r"nvapi-[A-Za-z0-9_-]{20,}",
    },
    "_": {
        "k_live_": r"[spr]k_live_[A-Za-z0-9]{16,}",
        "k_test_": r"[spr]k_test_[A-Za-z0-9]{16,}",
        "gh": r"gh[pousr]_[A-Za-z0-9]{30,}",
        "github_pat_": r"github_pat_[A-Za-z0-9_]{30,}",
        "hf_": r"hf_[A-Za-z0-9]{20,}",
        "gsk_": r"gsk_[A-Za-z0-9]{20,}",
        "npm_": r"npm_[A-Za-z0-9]{30,}",
        "shpat_": r"shpat_[A-Za-z0-9]{20,}",
        "dop_v1_": r"dop_v1_[a-f0-9]{40,}",
    },
    ".": {
        "ya29.": r"ya29\.[A-Za-z0-9_-]{20,}",
        "SG.": r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
        "hvs.": r"hvs\.[A-Za-z0-9_-]{20,}",
        "eyJ": r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    },
    "A": {
        "AKIA": r"AKIA[A-Z0-9]{16}(?![A-Z0-9])",
        "ASIA": r"ASIA[A-Z0-9]{16}(?![A-Z0-9])",
        "AIza": r"AIza[A-Za-z0-9_-]{35}",
    },
}
_KEY_PATTERNS = tuple(
    (mark, tuple((each, re.compile(p)) for each, p in group.items())) for mark, group in _KEYS.items()
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_BEARER = re.compile(r"Bearer +([A-Za-z0-9._~+/-]{16,}=*)")
# A secret without a mark of its own, told by the name it is given to.
_GIVEN = re.compile(
    r"(?:secret|token|api_?-?key|access_?-?key|passw(?:or)?d)[\"'\\]*\s{0,2}[:=]\s{0,2}[\"'\\]*([A-Za-z0-9+/_-]{16,}=*)",
    re.IGNORECASE,
)
_GIVEN_SIGNS = ("secret", "token", "api", "access", "passw")
SEPARATOR = " \u00a0().\u2010-\u2015/\\-"  # between the figures of a telephone number
LONG_NUMBER = re.compile(rf"[0-9](?:[{SEPARATOR}]{{0,3}}[0-9]){{6,24}}")
_DIGIT = re.compile("[0-9]")
_RUN = re.compile(r"[0-9](?:[ -]?[0-9]){11,}")
_GROUP = re.compile(r"[0-9]+")
_CARD_PREFIX = re.compile(
    r"4|5[0-9]|3[47]|30[0-5]|3[689]|35|6[0-9]|220[0-4]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|9792|8[12]|2131|1800"
)
_IBAN = re.compile(r"[0-9]{2}(?: ?[A-Za-z0-9]){11}")  # after the country's two letters
_IBAN_START = re.compile(r"[A-Za-z]{2}[0-9]{2}")
_IBAN_LENGTHS = {  # characters, as the SWIFT registry gives them
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
_IPV4 = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![A-Za-z0-9_]|\.[0-9])")
_IPV6 = re.compile(
    r"(?<![A-Za-z0-9_:])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{1,4})?(?![A-Za-z0-9_]|:[0-9A-Fa-f:])"
)
_IPV6_SIGN = re.compile(r":[0-9A-Fa-f]{0,4}:")
_SSN = re.compile(r"[0-9]{3}-[0-9]{2}-[0-9]{4}(?![A-Za-z0-9_-])")
_SSN_SAID = re.compile(r"[0-9]{3}[ .]?[0-9]{2}[ .]?[0-9]{4}(?![A-Za-z0-9_-])")
_SSN_CUE = re.compile(r"\bssn\b|social[ -]security", re.IGNORECASE)
_CPF = re.compile(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}(?![A-Za-z0-9_])")
_CODICE = re.compile(r"[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z](?![A-Za-z0-9_])")  # after six letters
_CURP = re.compile(r"[0-9]{6}[HM][A-Z]{5}[A-Z0-9][0-9](?![A-Za-z0-9_])")  # after four
_NIR = re.compile(r"[12] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}(?![A-Za-z0-9_])")
_CORSICAN = re.compile(r"[12] ?[0-9]{2} ?[0-9]{2} ?2[AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}(?![A-Za-z0-9_])")
_RESIDENT = re.compile(r"[1-9][0-9]{16}[0-9X](?![A-Za-z0-9_])")


def blurred(text: str) -> str:
    """A text of the same length with line ends for written-out escapes and base64, letters for escaped letters.

    In a string that holds JSON, `\\nann@example.org` begins with two characters that belong to no address.
    """
    if "\\" not in text and ";base64," not in text:
        return text
    return _ESCAPE.sub(lambda found: ("x" if _ACCENTED.search(found.group()) else "\n") * len(found.group()), text)


def find(text: str, kinds: Collection[str], region: str) -> list[tuple[int, int, str]]:
    """Start, end and kind of every finding, none inside another, in the order of the text."""
    from potstill.redaction.phones import phones

    view = blurred(text)
    digit = _DIGIT.search(view)
    numbers = [each.span() for each in LONG_NUMBER.finditer(view, digit.start())] if digit else []
    taken = Taken()
    for kind, finder in FINDERS:
        if kind in kinds:
            taken.add(kind, [each for each in finder(view) if taken.free(*each)])
    if digit:
        for kind, finder_at in NUMBER_FINDERS:
            if kind in kinds:
                if taken.spans:
                    numbers = [each for each in numbers if not taken.holds(*each)]
                for each in finder_at(view, digit.start(), numbers):
                    if taken.free(*each):
                        taken.add(kind, [each])
        if "PHONE" in kinds:
            taken.add("PHONE", list(phones(view, region, numbers, taken)))
    return taken.spans


class Taken:
    """Spans found so far, in the order of the text; a question costs the logarithm of their number."""

    __slots__ = ("_longest", "spans")

    def __init__(self, spans: Sequence[tuple[int, int, str]] = ()) -> None:
        self.spans = sorted(spans)
        self._longest = max((end - start for start, end, _ in spans), default=0)

    def add(self, kind: str, found: list[Span]) -> None:
        for start, end in found:
            insort(self.spans, (start, end, kind))
            self._longest = max(self._longest, end - start)

    def free(self, start: int, end: int) -> bool:
        """Whether none of the spans touches start..end."""
        return not any(start < each[1] for each in self._near(start, end))

    def holds(self, start: int, end: int) -> bool:
        """Whether one of the spans covers start..end."""
        return any(each[0] <= start and end <= each[1] for each in self._near(start, end))

    def _near(self, start: int, end: int) -> list[tuple[int, int, str]]:
        """Those that begin before `end`, and late enough to reach `start`."""
        if not self.spans:
            return self.spans
        first = bisect_left(self.spans, (start - self._longest, 0, ""))
        return self.spans[first : bisect_left(self.spans, (end, 0, ""))]


def is_word(text: str, at: int) -> bool:
    """Whether a Latin letter, a figure or an underscore stands there. Chinese writes no space around a number."""
    return 0 <= at < len(text) and (text[at] == "_" or (text[at] < "\u0250" and text[at].isalnum()))


def _urls(text: str) -> Iterator[Span]:
    if "://" not in text:
        return
    for found in _URL.finditer(text):
        scheme = _SCHEME.search(text, max(0, found.start() - 20), found.start())
        if scheme and _URL_SECRET.search(found.group()):
            yield scheme.start(), found.end()


def _api_keys(text: str) -> Iterator[Span]:
    if "-----BEGIN " in text:
        yield from (found.span() for found in _PEM.finditer(text))
    for mark, group in _KEY_PATTERNS:
        if mark in text:
            for literal, pattern in group:
                if literal in text:
                    yield from (each.span() for each in pattern.finditer(text) if not is_word(text, each.start() - 1))
    if "Bearer " in text:
        yield from (found.span(1) for found in _BEARER.finditer(text))
    if "=" in text or ":" in text:
        lower = text.lower()
        if any(sign in lower for sign in _GIVEN_SIGNS):
            yield from (found.span(1) for found in _GIVEN.finditer(text) if _is_random(found.group(1)))


def _is_random(text: str) -> bool:
    """Whether a word mixes letters and figures as keys do and names do not."""
    turns = sum(a.isdigit() != b.isdigit() for a, b in pairwise(text))
    return sum(c.isdigit() for c in text) >= 3 and turns >= 4 and sum(c.isalpha() for c in text) >= 3


def _emails(text: str) -> Iterator[Span]:
    for sign in ("@", "%40"):
        at = text.find(sign)
        while at >= 0:
            domain = _DOMAIN.match(text, at + len(sign))
            local = _LOCAL_END.search(text, max(0, at - 64), at) if domain else None
            if domain and local and (part := local.group().lstrip("'.-%")):
                yield at - len(part), domain.end()
            at = text.find(sign, domain.end() if domain else at + 1)


def _ibans(text: str, first: int, _: list[Span]) -> Iterator[Span]:
    at = first
    while found := _IBAN.search(text, at):
        start, end = found.start() - 2, _end_of_iban(text, found.start() - 2)
        if end:
            yield start, end
            at = end
        else:  # what matched may hold the beginning of one
            inside = _IBAN_START.search(text, found.start() + 2, found.end() + 2)
            at = inside.start() + 2 if inside else found.end()


def _end_of_iban(text: str, start: int) -> int:
    """Where the IBAN ends that begins there; 0 where none does."""
    length = _IBAN_LENGTHS.get(text[start : start + 2].upper()) if start >= 0 else None
    if length is None or is_word(text, start - 1):
        return 0
    end = start
    while length and end < len(text):
        length -= text[end] != " "
        end += 1
    return end if not length and not is_word(text, end) and _stdnum("iban")(text[start:end]) else 0


def _cards(text: str, _: int, numbers: list[Span]) -> Iterator[Span]:
    for found in _matches(_RUN, text, numbers):
        yield from _cards_among([group.span() for group in _GROUP.finditer(text, *found.span())], text)


_REACH = 64  # characters: more than any pattern of bounded length here is long


def _matches(pattern: re.Pattern[str], text: str, numbers: list[Span]) -> Iterator[re.Match[str]]:
    """The matches that begin in one of the numbers."""
    at = 0
    for start, end in numbers:
        at = max(at, start)
        # Looked for no further than a match can reach that begins in the number: else each number reads the whole text.
        while at < end and (near := pattern.search(text, at, end + _REACH)) and near.start() < end:
            found = pattern.match(text, near.start())
            if found:
                yield found
            at = found.end() if found else near.start() + 1


def _cards_among(groups: list[Span], text: str) -> Iterator[Span]:
    """Cards in a run of groups of figures, which may hold an expiry date or a check value besides."""
    first = 0
    while first < len(groups):
        for last in range(min(first + 8, len(groups)) - 1, first - 1, -1):
            start, end = groups[first][0], groups[last][1]
            number = "".join([text[a:b] for a, b in groups[first : last + 1]])
            if 12 <= len(number) <= 19 and is_card(number) and _bounded(text, start, end):
                yield start, end
                first = last
                break
        first += 1


def _bounded(text: str, start: int, end: int) -> bool:
    """Whether a number stands alone: no letter, figure, point or dash before it, nothing of a word or dash after."""
    touched = text[start - 1 : start] in {".", "-"} if start else False
    return not (touched or is_word(text, start - 1) or is_word(text, end) or text[end : end + 1] == "-")


def is_card(digits: str) -> bool:
    """Whether the digits are a payment card's: an issuer's beginning, 12 to 19 digits, Luhn's check (ISO/IEC 7812)."""
    if not 12 <= len(digits) <= 19 or not _CARD_PREFIX.match(digits):
        return False
    if len(digits) < 15 and digits[0] not in "3456":
        return False
    double = sum(_DOUBLED[each] for each in digits[-2::-2])
    return (double + sum(map(int, digits[-1::-2]))) % 10 == 0


_DOUBLED = {str(each): sum(divmod(each * 2, 10)) for each in range(10)}


def _ips(text: str) -> Iterator[Span]:
    if text.count(".") >= 3:
        for found in _IPV4.finditer(text):
            start = found.start()
            touched = is_word(text, start - 1) or text[max(0, start - 1) : start] == "."
            if not touched and _is_ip(found.group()):
                yield found.span()
    if text.count(":") >= 2 and _IPV6_SIGN.search(text):
        for found in _IPV6.finditer(text):
            address = found.group()
            if address.endswith(":") and not address.endswith("::"):
                address = address[:-1]  # the colon of a sentence
            if sum(each in "0123456789abcdefABCDEF" for each in address) >= 4 and _is_ip(address):
                yield found.start(), found.start() + len(address)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _national_ids(text: str, first: int, numbers: list[Span]) -> Iterator[Span]:
    for pattern, check in _NATIONAL if numbers else ():
        for found in _matches(pattern, text, numbers):
            if _is_apart(text, found.start()) and check(found.group()):
                yield found.span()
    if numbers and ("ssn" in (lower := text.lower()) or "social" in lower):
        for found in _matches(_SSN_SAID, text, numbers):
            said = _SSN_CUE.search(text, max(0, found.start() - 40), found.start())
            if said and _is_apart(text, found.start()) and _is_ssn(found.group()):
                yield found.span()
    for pattern, letters, name in _LETTERED:
        for found in pattern.finditer(text, first):
            start = found.start() - letters
            if start >= 0 and _is_apart(text, start) and _stdnum(name)(text[start : found.end()]):
                yield start, found.end()


def _is_apart(text: str, start: int) -> bool:
    return not is_word(text, start - 1) and text[max(0, start - 1) : start] != "-"


@lru_cache
def _stdnum(name: str) -> Callable[[str], bool]:
    """The check of a number by its module in python-stdnum.

    Some of its modules fail on a place or a registry that they have no entry for, after the figures have checked:
    that counts as a number of this kind.
    """
    from importlib import import_module

    valid: Callable[[str], bool] = import_module(f"stdnum.{name}").is_valid

    def check(number: str) -> bool:
        try:
            return valid(number)
        except LookupError:
            return True

    return check


def _is_ssn(text: str) -> bool:
    return _stdnum("us.ssn")(re.sub(r"\D", "", text))


# Those whose rule leaves little room for chance: two check digits or more, or a date and a figure that checks.
_NATIONAL: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (_SSN, _is_ssn),
    (_CPF, lambda text: _stdnum("br.cpf")(text)),
    (_NIR, lambda text: _stdnum("fr.nir")(text)),
    (_RESIDENT, lambda text: _stdnum("cn.ric")(text)),
)
_LETTERED = ((_CODICE, 6, "it.codicefiscale"), (_CURP, 4, "mx.curp"), (_CORSICAN, 0, "fr.nir"))
FINDERS: tuple[tuple[Kind, Callable[[str], Iterator[Span]]], ...] = (
    ("URL", _urls),
    ("API_KEY", _api_keys),
    ("EMAIL", _emails),
    ("IP", _ips),
)
# Given where the text's first figure is, and its numbers of seven figures or more, which are looked for once for all.
NUMBER_FINDERS: tuple[tuple[Kind, Callable[[str, int, list[Span]], Iterator[Span]]], ...] = (
    ("IBAN", _ibans),
    ("CARD", _cards),
    ("NATIONAL_ID", _national_ids),
)
