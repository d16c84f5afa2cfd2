"""Structured personal data and secrets found by rule and replaced by placeholders, before anything is written.

E-mail, phone (Google's libphonenumber rules), payment card (Luhn), IBAN (checksum), IP address, URL that carries a
token, API key. Each value becomes `<KIND_n>`; the same value gets the same placeholder within one conversation.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from potstill.records import Json, sha_id

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
_URL = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s<>\"']+")
_URL_SECRET = re.compile(
    r"://[^/\s]*:[^/\s]*@|[?&#;](?:[\w-]*(?:token|secret|passw|apikey|api_key|signature|auth|session|credential)[\w-]*"
    r"|key|sig|code|pwd)=[^&\s]+",
    re.IGNORECASE,
)
_API_KEY = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{16,}|(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|A(?:KIA|SIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----"
    r"|(?<=Bearer )[A-Za-z0-9._~+/-]{16,}=*",
    re.DOTALL,
)
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?![A-Za-z0-9])")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])")
# A text without any of these signs holds nothing that the rules below could find: one pass instead of eight.
_SIGN = re.compile(
    r"@|://|\d(?:[^\w]{0,3}\d){6}|\d\.\d+\.\d|[0-9A-Fa-f]:[0-9A-Fa-f:]|::|[A-Z]{2}\d\d|-----BEGIN|Bearer "
    r"|sk[-_]|[pr]k_|gh[pousr]_|github_|glpat|hf_|xox|AKIA|ASIA|AIza|eyJ"
)


def _is_luhn(text: str) -> bool:
    from stdnum import luhn

    return bool(luhn.is_valid(re.sub(r"[ -]", "", text)))


def _is_iban(text: str) -> bool:
    from stdnum import iban

    return bool(iban.is_valid(text))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return ":" not in text or sum(c in "0123456789abcdefABCDEF" for c in text) >= 4


def _always(_: str) -> bool:
    return True


Check = Callable[[str], bool]
# Order matters: what stands inside another kind (an address in a URL) belongs to the outer one.
RULES: tuple[tuple[str, re.Pattern[str], Check], ...] = (
    ("API_KEY", _API_KEY, _always),
    ("URL", _URL, lambda text: bool(_URL_SECRET.search(text))),
    ("EMAIL", _EMAIL, _always),
    ("IBAN", _IBAN, _is_iban),
    ("CARD", _CARD, _is_luhn),
    ("IP", _IPV4, _is_ip),
    ("IP", _IPV6, _is_ip),
)
Kind = Literal["API_KEY", "URL", "EMAIL", "IBAN", "CARD", "IP", "PHONE"]
KINDS: tuple[Kind, ...] = ("API_KEY", "URL", "EMAIL", "IBAN", "CARD", "IP", "PHONE")


@dataclass
class Redactor:
    """Holds what was found, by kind, and each conversation's placeholders. `region` reads national phone numbers."""

    kinds: tuple[Kind, ...] = KINDS
    region: str = "US"
    found: Counter[str] = field(default_factory=Counter)
    _names: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)

    def text(self, text: str, conversation: str = "") -> str:
        """The text with every finding replaced."""
        if not _SIGN.search(text):
            return text
        for kind, pattern, check in RULES:
            if kind in self.kinds:
                text = self._replace(text, kind, pattern, check, conversation)
        if "PHONE" in self.kinds:
            for start, end in reversed(list(_phones(text, self.region))):
                text = text[:start] + self._name("PHONE", text[start:end], conversation) + text[end:]
        return text

    def value(self, value: Any, conversation: str = "") -> Any:
        """Any JSON value with every string in it redacted (keys stay)."""
        if isinstance(value, str):
            return self.text(value, conversation)
        if isinstance(value, dict):
            return {key: self.value(each, conversation) for key, each in value.items()}
        if isinstance(value, list):
            return [self.value(each, conversation) for each in value]
        return value

    def exchange(self, exchange: Json) -> Json:
        """An exchange in JSON form with prompts, tools' arguments, answers and feedback redacted; ids stay."""
        metadata = exchange.get("metadata") or {}
        conversation = str(metadata.get("conversation") or exchange.get("id", ""))
        out = dict(exchange)
        for key in ("request", "response", "feedback"):
            if key in out:
                out[key] = self.value(out[key], conversation)
        if metadata:
            out["metadata"] = {
                key: each if key in ("conversation", "split") else self.value(each, conversation)
                for key, each in metadata.items()
            }
            for key in ("user", "conversation"):
                # placeholders count within a conversation: they would make one user of many, and many of one
                if key in metadata and self.value(metadata[key], conversation) != metadata[key]:
                    out["metadata"][key] = f"<{key.upper()}_{sha_id(metadata[key])}>"
        return out

    def _replace(self, text: str, kind: str, pattern: re.Pattern[str], check: Check, conversation: str) -> str:
        def placeholder(found: re.Match[str]) -> str:
            value = found.group()
            return self._name(kind, value, conversation) if check(value) else value

        return pattern.sub(placeholder, text)

    def _name(self, kind: str, text: str, conversation: str) -> str:
        self.found[kind] += 1
        names = self._names.setdefault(conversation, {})
        key = (kind, re.sub(r"[\s()-]", "", text).casefold())
        if key not in names:
            names[key] = f"<{kind}_{sum(1 for each in names if each[0] == kind) + 1}>"
        return names[key]


def _phones(text: str, region: str) -> Iterator[tuple[int, int]]:
    """Spans of telephone numbers that libphonenumber holds for valid (`+` numbers of any country, others of region)."""
    if not re.search(r"\d(?:[^\w\n]{0,3}\d){6}", text):
        return
    from phonenumbers import Leniency, PhoneNumberMatcher

    for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
        if re.fullmatch(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}.*|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}", match.raw_string):
            continue  # a date reads as a number in some regions
        yield match.start, match.end
