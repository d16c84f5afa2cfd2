"""A text as a reader would read it, whatever it was written with: the views that the injection screen looks at.

Look-alike letters, invisible characters, letters set apart and figures for letters are undone in place; what was
encoded (base64, hexadecimal, percent, entities, tags, variation selectors) is decoded into texts of its own. Each way
is tried only where a cheap sign of it is there, so plain English costs one `lower`.

Sources: Unicode TR39 (confusables), TR36 (invisible and tag characters).
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from urllib.parse import unquote

STOPS = ".!?;:"  # a line's end counts as a point
TOKEN = re.compile(f"[a-z0-9]+|[{STOPS}]")
_APART_BY = str.maketrans({chr(at): " " for at in range(128) if not chr(at).isalnum() and chr(at) not in STOPS})
MOST_DECODED = 65_536  # characters of a text's decoded spans that are looked at; the rest is not
_SAME_LETTERS = {  # a Latin letter and the letters of other alphabets that look like it
    "a": "\u0430\u03b1\u0251\u1d00\u13aa\u15c5", "b": "\u042c\u0184\u0253\u0299\u13cf\u15af",
    "c": "\u0441\u03f2\u1d04\u13df\u0188", "d": "\u0501\u1d05\u13a0\u0257", "e": "\u0435\u0454\u03b5\u1d07\u13ac\u0259",
    "f": "\u03dd\ua730\u0192", "g": "\u0261\u0262\u050d\u0581", "h": "\u04bb\u029c\u13bb\u0570",
    "i": "\u0456\u03b9\u0131\u026a\u04cf\u13a5\u0269", "j": "\u0458\u1d0a\u13eb\u03f3", "k": "\u043a\u03ba\u1d0b\u13e6",
    "l": "\u029f\u13de\u0399\u04c0\u01c0", "m": "\u043c\u1d0d\u13b7\u217f", "n": "\u0274\u0578\u03b7\u0272",
    "o": "\u043e\u03bf\u1d0f\u0585\u0d20\u2c9f", "p": "\u0440\u03c1\u1d18\u13e2", "q": "\u051b\u0566\u01eb",
    "r": "\u0433\u0280\u13a1\u027e", "s": "\u0455\ua731\u13da\u01bd", "t": "\u0442\u03c4\u1d1b\u13a2",
    "u": "\u03c5\u057d\u1d1c\u028b\u0446", "v": "\u03bd\u0475\u1d20\u13d9", "w": "\u0461\u051d\u1d21\u13b3\u03c9",
    "x": "\u0445\u03c7\u04b3", "y": "\u0443\u03b3\u028f\u04af\u0263", "z": "\u1d22\u13c3\u0290",
}  # fmt: skip
_FOLDED = {ord(other): latin for latin, others in _SAME_LETTERS.items() for other in others}
_FOLDED |= {ord(other.lower()): latin for latin, others in _SAME_LETTERS.items() for other in others}
_FOLDED[0x2019] = "'"
_FOLDED |= {0x1F150 + at: chr(97 + at) for at in range(26)}  # white letters on black circles
_FOLDED |= {0x1F170 + at: chr(97 + at) for at in range(26)}  # and squares
_FOLDED |= {0x1F1E6 + at: chr(97 + at) for at in range(26)}  # regional indicators
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\U000e0000-\U000e0fff]"
)
_TAGS = re.compile("[\U000e0020-\U000e007e]{4,}")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{8,}")
_FIGURES = str.maketrans("013457@$", "oieastas")
_FIGURE = re.compile("[0-9@$]")
_APART = re.compile(r"(?<![^\W_])(?:[^\W\d_][ .\-_*|/\\]{1,3}){4,}[^\W\d_](?![^\W_])")
_BETWEEN = re.compile(r"[.\-_*|/\\]+|(?<! ) (?! )")
MARKED = re.compile(r"[*_~^|\u00b7\u2022.-](?<=[a-z].)(?=[a-z])")
# Marks between letters go; a point does only where a letter stands alone beside it (`i.g.n.o.r.e`, not `end.Next`).
_SPLIT = re.compile(r"[*_~^|\u00b7\u2022.-](?<=[a-z].)(?=[a-z])(?:(?<![.])|(?=[a-z](?![a-z]))|(?<=(?<![a-z])[a-z].))")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{20,}={0,2}")
_BASE32 = re.compile(r"(?<![^\s:'\"(])[A-Z2-7]{24,}={0,6}")
_BASE85 = re.compile(r"(?<!\S)\S{25,}")
_HEX = re.compile(r"\b(?:(?:[0-9a-fA-F]{2}){12,}|(?:[0-9a-fA-F]{2}[ :]){11,}[0-9a-fA-F]{2})")
_BYTES = re.compile(r"(?:\\x[0-9a-fA-F]{2}){6,}|(?:\\u[0-9a-fA-F]{4}){6,}")
_BITS = re.compile(r"\b(?:[01]{8} ?){8,}")
_LETTERS = re.compile(r"[A-Za-z]")
_DIGIT = re.compile("[0-9]")
_LONG_WORD = 20
_ROT13 = str.maketrans("abcdefghijklmnopqrstuvwxyz", "nopqrstuvwxyzabcdefghijklm")


class Reading:
    """A text with what every guard needs of it, worked out once: in plain letters, and its words and sentence ends."""

    __slots__ = ("lower", "text", "tokens")

    def __init__(self, text: str) -> None:
        self.text = text
        self.lower = plain(text)
        self.tokens = tokens_of(self.lower)

    def views(self) -> Iterator[str]:
        """The text in plain letters, and as it reads when a disguise of its words is undone, where there may be one."""
        yield self.lower
        written = unfigured(self.lower)
        if written != self.lower:
            yield written
        if MARKED.search(self.lower):
            yield unsplit(self.lower)
        if self._letters_alone() >= 4:
            yield joined(self.lower)

    def _letters_alone(self) -> int:
        """Letters and figures that stand alone, and the rarer ends of sentences."""
        return [*map(len, self.tokens)].count(1) - self.tokens.count(".")


def tokens_of(lower: str) -> list[str]:
    """Words and ends of sentences of a plain text; apostrophes are no part of a word (`don't` is `dont`)."""
    line = lower.replace("'", "").replace("\n", ".")
    if not line.isascii():
        return TOKEN.findall(line)
    line = line.translate(_APART_BY)  # the same as TOKEN in half its time
    for stop in STOPS:
        line = line.replace(stop, f" {stop} ")
    return line.split()


def plain(text: str) -> str:
    """The text in lower case, letters without accents and look-alikes, what cannot be seen taken out."""
    if text.isascii():
        return text.lower()
    seen = _UNSEEN.sub("", unicodedata.normalize("NFKD", text))
    return seen.casefold().translate(_FOLDED)


def unfigured(text: str) -> str:
    """Words of a plain text with figures for letters (`1gn0re`) written out; numbers stay."""
    if not _FIGURE.search(text):
        return text
    words = text.split(" ")
    for at, word in enumerate(words):
        if not word.isalpha() and _FIGURE.search(word) and _LETTERS.search(word):
            words[at] = word.translate(_FIGURES)
    return " ".join(words)


def joined(text: str) -> str:
    """A plain text with letters that were set apart (`i g n o r e`, `i-g-n-o-r-e`) joined to words.

    Where two or more spaces stand between words and one between letters, the words are known; else the letters of
    a run come out as one word, which `injection` cuts by its lexicon.
    """
    return _APART.sub(lambda found: " ".join(_BETWEEN.sub("", found.group()).split()), text)


def unsplit(text: str) -> str:
    """A plain text without marks inside words (`ig*nore`, `in-struc-tions`)."""
    return _SPLIT.sub("", text)


def rot13(text: str) -> str:
    """A plain text turned by thirteen letters."""
    return text.translate(_ROT13)


def decoded(text: str) -> list[str]:
    """What the text holds in an encoding, decoded: at most MOST_DECODED characters, and none that is no text."""
    found: list[str] = []
    if not text.isascii():
        found += [_from_tags(each) for each in _TAGS.findall(text)]
        found += filter(None, (_from_selectors(each) for each in _SELECTORS.findall(text)))
    if len(text) >= _LONG_WORD:
        found += _from_words(text, text.split())
    if "\\x" in text or "\\u00" in text:
        found += [_from_bytes(each) for each in _BYTES.findall(text)]
    if text.count("%") >= 6:
        found.append(unquote(text))
    if text.count("&#") >= 6:
        found.append(html.unescape(text))
    return [each[:MOST_DECODED] for each in found if each and _LETTERS.search(each)]


def _from_words(text: str, words: list[str]) -> list[str]:
    """What long words decode to, and rows of two hexadecimal figures or eight bits."""
    found: list[str | None] = []
    if long := " ".join([each for each in words if len(each) >= _LONG_WORD]):
        for pattern, decode in _ENCODINGS:
            found += map(decode, pattern.findall(long))
    if len(_DIGIT.findall(text)) >= 12:
        lengths = Counter(map(len, words))
        found += map(_from_hex, _HEX.findall(text)) if lengths[2] >= 12 else ()
        found += map(_from_bits, _BITS.findall(text)) if lengths[8] >= 8 else ()
    return list(filter(None, found))


def _from_tags(text: str) -> str:
    return "".join(chr(ord(each) - 0xE0000) for each in text)


def _from_selectors(text: str) -> str | None:
    """Bytes written as variation selectors: the first sixteen and the further two hundred and forty."""
    data = bytes(ord(each) - 0xFE00 if ord(each) < 0x10000 else ord(each) - 0xE0100 + 16 for each in text)
    return _text_of(data)


def _from_base64(text: str) -> str | None:
    bare = text.rstrip("=").replace("-", "+").replace("_", "/")
    if len(bare) % 4 == 1 or len(bare) > MOST_DECODED * 2:
        return None
    try:
        return _text_of(base64.b64decode(bare + "=" * (-len(bare) % 4)))
    except binascii.Error:
        return None


def _from_base32(text: str) -> str | None:
    bare = text.rstrip("=")[: MOST_DECODED * 2]
    try:
        return _text_of(base64.b32decode(bare + "=" * (-len(bare) % 8)))
    except binascii.Error:
        return None


def _from_base85(text: str) -> str | None:
    if text.isalnum() or "://" in text or len(text) > MOST_DECODED * 2:
        return None
    for decode in (base64.b85decode, base64.a85decode):
        try:
            if (found := _text_of(decode(text))) is not None:
                return found
        except ValueError:
            continue
    return None


def _from_hex(text: str) -> str | None:
    return _text_of(bytes.fromhex(text.replace(":", " ")[: MOST_DECODED * 2]))


def _from_bits(text: str) -> str | None:
    bits = text.replace(" ", "")
    return _text_of(bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits) - 7, 8)))


def _from_bytes(text: str) -> str:
    return "".join(chr(int(each, 16)) for each in re.findall(r"[0-9a-fA-F]{2,4}", text.replace("\\", " ")))


def _text_of(data: bytes) -> str | None:
    """The bytes as text, None where they are none: of base64's random bytes hardly any run is printable."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    shown = sum(each.isprintable() or each in "\n\t" for each in text)
    return text if len(text) >= 8 and shown >= 0.97 * len(text) else None


_ENCODINGS = (
    (_BASE64, _from_base64),
    (_BASE32, _from_base32),
    (_BASE85, _from_base85),
    (_HEX, _from_hex),
    (_BITS, _from_bits),
)
