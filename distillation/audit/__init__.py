"""The teacher audit: what a log's answers are worth, and which of them to keep, drop, relabel or trust less."""

from .examine import audit
from .rows import COLUMNS, Action, Audited, AuditRow, asked_text, standing_text
from .settings import Audit

__all__ = ["COLUMNS", "Action", "Audit", "AuditRow", "Audited", "asked_text", "audit", "standing_text"]
