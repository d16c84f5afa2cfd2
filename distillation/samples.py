"""Several answers of the teacher to one request: sequence-level distillation (Kim and Rush 2016, section 3.3).

The student learns the teacher's distribution over whole answers, estimated by its samples: each distinct valid answer
is a row, weighed by its share. Samples are the `choices` of a response, the answers of a teacher that was asked again,
and (in `verdicts.fold`) the answers to duplicates. Rows of validation and test keep the first answer alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from potstill.records import NOT_WHOLE, Exchange
from potstill.tasks import Task

Samples = Literal["first", "all"]


def shares(answers: Iterable[str]) -> dict[str, float]:
    """Each distinct answer's share of them, in the order in which they came."""
    found = Counter(answers)
    whole = sum(found.values())
    return {answer: count / whole for answer, count in found.items()}


def sampled(exchange: Exchange, task: Task) -> str | None:
    """The shares of the valid, whole answers of a response as JSON; None where they are one and the same."""
    choices = exchange.response["choices"]
    if len(choices) < 2:
        return None
    import orjson

    valid = []
    for each in choices:
        message = each.get("message")
        if not isinstance(message, dict) or each.get("finish_reason") in NOT_WHOLE:
            continue
        parsed = task.parse(task.text_of(message), exchange.tools)
        if parsed.valid:
            valid.append(task.canonical(parsed.value))
    found = shares(valid)
    return orjson.dumps(found).decode() if len(found) > 1 else None


def sample_id(identity: str, at: int) -> str:
    """The id of the row of a further answer to the request of `identity`; the first keeps the id itself."""
    return f"{identity}~{at}" if at else identity


def spread(answer: str, found: Mapping[str, float]) -> list[tuple[str, float]]:
    """(answer, share) with the row's own answer first; the row alone where it is not among the samples."""
    if answer not in found:
        return [(answer, 1.0)]
    return [(answer, found[answer]), *((each, share) for each, share in found.items() if each != answer)]
