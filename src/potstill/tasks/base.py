"""What a task kind must say: which answers are valid, how they are written, scored and constrained.

Distillation, evaluation and serving all ask the same Task, so a valid answer means one thing.
An answer has three forms: the assistant *message* (OpenAI JSON), its canonical *text* (what the student
learns to write, what the template wraps), and its *value* (what is scored: a label, an object, calls).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from potstill.records import Json, Message


@dataclass(frozen=True, slots=True)
class Parsed:
    """A text read as an answer: its value, or the reason why it is none."""

    value: Any = None
    reason: str | None = None

    @property
    def valid(self) -> bool:
        return self.reason is None


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a decoder may write: one of `choices` verbatim, or JSON of `schema`."""

    kind: Literal["choices", "json_schema"]
    choices: tuple[str, ...] = ()
    schema: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metric:
    """A ratio of sums over rows: sum(weights * numerator) / sum(weights * denominator).

    Row scores are named components (`Task.score`); an empty denominator means the number of rows, so that a
    mean is the special case, and micro F1 (2tp / (2tp + fp + fn)) resamples as correctly as accuracy.
    """

    name: str
    numerator: Mapping[str, float]
    denominator: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """One task kind with its labels or schema. `metrics[0]` is the primary metric."""

    @property
    def kind(self) -> str: ...

    @property
    def metrics(self) -> Sequence[Metric]: ...

    def text_of(self, message: Message) -> str:
        """The canonical text of an assistant message (not yet checked for validity)."""

    def message_of(self, text: str) -> Message:
        """The assistant message that a service gets for a text (tool calls unpacked)."""

    def parse(self, text: str, tools: Sequence[Json] = ()) -> Parsed:
        """Read a text as an answer, or say why it is none."""

    def canonical(self, value: Any) -> str:
        """The one text that stands for a value; parse(canonical(v)).value == v."""

    def from_gold(self, answer: Any) -> Parsed:
        """Read a gold answer or a correction (text or JSON value)."""

    def score(self, value: Any | None, gold: Any) -> dict[str, float]:
        """Row components for `metrics`; value None means an invalid answer."""

    def constraint(self) -> Constraint | None:
        """What the decoder may write, or None."""

    def describe(self) -> Json:
        """The definition that travels in manifests; two tasks agree when these are equal."""
