"""The alias `challenger`: the version that a share of the traffic tries beside the champion. No move of `champion`."""

from __future__ import annotations

from potstill.tracking import Tracking, client
from potstill.tracking_journal import patiently
from potstill.tracking_versions import aliases

CHALLENGER = "challenger"


def set_challenger(tracking: Tracking, model: str, version: str | None) -> None:
    """Point the alias at a version, or take it away (None). Doing it again changes nothing."""
    now = aliases(tracking, model).get(CHALLENGER)
    if now == version:
        return
    api = client(tracking)
    if version is None:
        patiently(lambda: api.delete_registered_model_alias(model, CHALLENGER))
    else:
        patiently(lambda: api.set_registered_model_alias(model, CHALLENGER, version))
