"""Personal data and secrets found and replaced by placeholders, before anything is written.

By rule, with the checksum where a kind has one: URL that carries a secret, API key, e-mail, IBAN, payment card,
national id, IP address, phone. By a model, only where asked for: people, places, organisations (`names`).
"""

from __future__ import annotations

from potstill.redaction.batch import redact_batch
from potstill.redaction.key import redaction_key
from potstill.redaction.names import Names, load_names
from potstill.redaction.redactor import PLACEHOLDER, Redactor
from potstill.redaction.rules import KINDS, Kind

__all__ = ["KINDS", "PLACEHOLDER", "Kind", "Names", "Redactor", "load_names", "redact_batch", "redaction_key"]
