"""The log formats that `distill` reads, one module each."""

from __future__ import annotations

from importlib import import_module

from potstill.errors import RecipeError
from potstill.records import Json

from .base import Connector

# Order is the order of detection: the more exact sign first.
FORMATS: tuple[str, ...] = (
    "openai_pairs",
    "openai_stored",
    "openai_batch",
    "openai_preferences",
    "openai_finetuning",
    "anthropic_batch",
    "anthropic_messages",
    "litellm_payload",
    "litellm_spend",
    "helicone",
    "otel_genai",
    "otel_events",
    "traceloop",
    "openinference",
    "langfuse",
    "mlflow_traces",
    "tensorzero",
)


def connector(name: str) -> Connector:
    """The connector of a format."""
    found = import_module(f".{name}", __package__).CONNECTOR
    assert isinstance(found, Connector)
    return found


def detect(records: list[Json], where: str) -> Connector:
    """The format whose sign most of these first records of a file bear; raises RecipeError when there is none."""
    votes = {name: sum(connector(name).detect(each) for each in records) for name in FORMATS}
    best = max(FORMATS, key=lambda name: votes[name])
    if not votes[best] or votes[best] * 2 < len(records):
        keys = sorted(records[0])[:12] if records else []
        raise RecipeError(
            [f"distill.sources: {where}: no known format (first record has {keys}); say format: {' | '.join(FORMATS)}"]
        )
    return connector(best)
