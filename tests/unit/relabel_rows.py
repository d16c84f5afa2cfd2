"""Rows, settings and answers that the tests of relabelling share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from distillation.relabel import Relabel, RelabelRow
from distillation.relabel.ledger import Paid
from potstill.tasks import task_from
from tests.local_teacher import LABELS, PRICE

TASK = task_from({"kind": "classification", "labels": list(LABELS)})


def settings_for(url: str = "http://127.0.0.1:9/v1", honoured: bool = True, **more: Any) -> Relabel:
    about = {"base_url": url, "model": "t", "price": PRICE, "max_tokens": 16, "honours_idempotency_keys": honoured}
    given: dict[str, Any] = {"teacher": about, "budget_usd": 1.0, "batch_poll_s": 0.02, "concurrency": 4} | more
    return Relabel.model_validate(given)


def row(identity: str = "a", old: str | None = None, correction: str | None = None) -> RelabelRow:
    return RelabelRow(identity, [{"role": "user", "content": f"mail {identity}"}], [], old, correction)


def say(*texts: str) -> Callable[[dict[str, Any], str], str]:
    """A teacher's answers in the order asked (with concurrency 1), the last one again and again."""
    left = list(texts)
    return lambda body, key: left.pop(0) if len(left) > 1 else left[0]


def paid(text: str, finish: str = "stop") -> Paid:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Paid(200, json.dumps({"choices": [choice]}), 1)
