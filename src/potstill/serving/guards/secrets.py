"""Secrets by the patterns of detect-secrets, beside those of `potstill.redaction`: more services, one pattern each.

Only its detectors that know a service's own form are asked; those by entropy or by a word beside it find what is none.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from potstill.errors import RecipeError
from potstill.redaction.rules import Taken

Finding = tuple[int, int, str]
# One module of the package each. Left out: entropy, keywords, addresses (kinds of our own), logins in URLs (ours too).
_MODULES = (
    "artifactory", "aws", "azure_storage_key", "cloudant", "discord", "github_token", "gitlab_token", "ibm_cloud_iam",
    "ibm_cos_hmac", "jwt", "mailchimp", "npm", "openai", "private_key", "pypi_token", "sendgrid", "slack", "softlayer",
    "square_oauth", "stripe", "telegram_token", "twilio",
)  # fmt: skip


def find_more(text: str, spans: list[Finding]) -> list[Finding]:
    """The spans and, outside them, what detect-secrets finds, as kind SECRET; in the order of the text."""
    found = Taken(spans)
    for pattern in _patterns():
        for each in pattern.finditer(text):
            group = 1 if pattern.groups == 1 and each.group(1) else 0
            start, end = each.span(group)
            if end > start and found.free(start, end):
                found.add("SECRET", [(start, end)])
    return found.spans


def refuse_missing_detector(key: str) -> None:
    """Raises RecipeError where the package is not installed."""
    if find_spec("detect_secrets") is None:
        raise RecipeError([f"{key}: needs detect-secrets, which is not installed; pip install 'potstill[guards]'"])


@lru_cache(maxsize=1)
def _patterns() -> tuple[Any, ...]:
    base: Any = import_module("detect_secrets.plugins.base").RegexBasedDetector
    found: list[Any] = []
    for name in _MODULES:
        module = import_module(f"detect_secrets.plugins.{name}")
        for each in vars(module).values():
            if isinstance(each, type) and issubclass(each, base) and each is not base:
                found += vars(each)["denylist"]
    return tuple(found)
