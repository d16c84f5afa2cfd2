"""People, places and organisations found by a model: an optional stage of redaction, off unless asked for.

Rules cannot tell a name from a word. A spaCy pipeline can, most of the time; how often is measured by
`python -m benchmarks.redaction`. It costs milliseconds a row where the rules cost microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from potstill.errors import RecipeError

Span = tuple[int, int, str]
NAME_KINDS = ("PERSON", "ADDRESS", "LOCATION", "ORGANIZATION")
DEFAULT = ("PERSON", "ADDRESS", "LOCATION")  # of ten organisations that small models name, eight are none
# The labels of OntoNotes, CoNLL and the usual models for personal data, and the kind that each is.
_KIND_OF = {
    "PERSON": "PERSON", "PER": "PERSON", "FAC": "ADDRESS", "ADDRESS": "ADDRESS", "STREET_ADDRESS": "ADDRESS",
    "GPE": "LOCATION", "LOC": "LOCATION", "LOCATION": "LOCATION", "ORG": "ORGANIZATION", "ORGANIZATION": "ORGANIZATION",
}  # fmt: skip


class Names(Protocol):
    """A stage that finds names. Must give a text the same spans whatever it is asked together with."""

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """For each text, start, end (in characters) and kind of what was found, none inside another."""
        ...


class SpacyNames:
    """Names by a spaCy pipeline: `model` is an installed package (`en_core_web_sm`) or a folder. Needs `[names]`."""

    def __init__(self, model: str, kinds: Sequence[str] = DEFAULT) -> None:
        self._kinds = frozenset(kinds)
        self._pipeline = _load(model)

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        # One by one: rounding depends on a batch's shape, and a row must not depend on its neighbours.
        return [self._spans(self._pipeline(each)) if _has_letter(each) else [] for each in texts]

    def _spans(self, read: Any) -> list[Span]:
        spans = [(each.start_char, each.end_char, _KIND_OF.get(each.label_, "")) for each in read.ents]
        return [each for each in spans if each[2] in self._kinds]


def load_names(model: str) -> Names | None:
    """The stage that `redact.names` asks for: None for `off`, else a spaCy pipeline by package name or folder."""
    return None if model == "off" else SpacyNames(model)


def _load(model: str) -> Any:
    try:
        spacy = import_module("spacy")
    except ImportError as missing:
        raise RecipeError(
            [
                f"redact.names: {model}: needs spaCy, which is not installed; "
                "pip install 'potstill[names]' and a pipeline, or set redact.names: off"
            ]
        ) from missing
    try:
        pipeline = spacy.load(model, exclude=["lemmatizer", "parser", "attribute_ruler", "tagger", "senter"])
    except (OSError, ValueError) as fault:
        known = ", ".join(sorted(spacy.util.get_installed_models())) or "none"
        what = "a folder that holds no spaCy pipeline" if Path(model).exists() else "no installed spaCy pipeline"
        raise RecipeError([f"redact.names: {model}: {what} ({fault}); installed: {known}"]) from fault
    if not any(pipeline.has_pipe(each) for each in ("ner", "entity_ruler", "span_ruler", "transformer")):
        raise RecipeError(
            [f"redact.names: {model}: finds no entities; its parts are {', '.join(pipeline.pipe_names) or 'none'}"]
        )
    return pipeline


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))
