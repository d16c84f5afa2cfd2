"""Text that a model or a customer wrote, made safe to look at: nothing in it can hide, reorder or run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

# Characters that a reader cannot see or that move others: controls, bidirectional marks, zero-width spaces, line
# separators, surrogates, non-characters, tags. Joiners (U+200C, U+200D) stay: Persian and emoji are written with them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufdd0-\ufdef"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)
# More marks than this on one letter are drawn over the lines above and below it.
_STACKED = re.compile("([\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{4})[\u0300-\u036f"
                      "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")  # fmt: skip


def visible(text: str) -> str:
    """The text with hidden characters spelt out: NUL as its picture, a right-to-left override as its code point."""
    return _STACKED.sub("\\1\u2026", _HIDDEN.sub(_spelt, text.replace("\r\n", "\n")))


def _spelt(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\u27e8U+{code:04X}\u27e9"


def shown(value: Any) -> Any:
    """What a template writes for a value: text made visible, everything else (also finished markup) as it is."""
    from markupsafe import Markup

    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def breakable(text: str) -> Markup:
    """The text, escaped, with places to break after the underscores of a label and the commas of JSON."""
    from markupsafe import Markup, escape

    return Markup(str(escape(visible(text))).replace("_", "_<wbr>").replace(",", ",<wbr>"))


def short(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + " …"
