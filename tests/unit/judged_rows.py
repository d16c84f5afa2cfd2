"""Rows and predictions to judge, whose right verdict a scripted judge can read off: answers say how good they are."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluation.judges import JudgeSettings, Outcome, judge_predictions
from evaluation.rows import HeldOut
from potstill.intervals import Resampling
from potstill.records import Example, Json, Prediction
from potstill.stage import Shared

STUDENT, TEACHER = "artifact:gguf-q8_0", "teacher"
PRICE = {"input": 2.0, "output": 8.0}  # what tests.local_teacher bills
_QUALITY = re.compile(r"quality (\d+)")
Reply = Callable[[Json, str], str]


def held_out(count: int, *, turns: int = 1) -> HeldOut:
    examples = []
    for row in range(count):
        prompt = [{"role": "user", "content": f"request {row}"}]
        examples.append(Example(f"r{row}", f"c{row // turns}", prompt, prompt, "gold", "gold", "gold"))
    return HeldOut(examples, count, {}, {}, None)


def said(row: int, quality: int) -> str:
    return f"An answer to request {row} of quality {quality}."


def predictions(rows: HeldOut, student: Sequence[str], teacher: Sequence[str]) -> dict[str, list[Prediction]]:
    return {
        name: [
            Prediction(each.id, each.conversation, name, text, bool(text), None if text else "empty answer")
            for each, text in zip(rows.examples, texts, strict=True)
        ]
        for name, texts in ((TEACHER, teacher), (STUDENT, student))
    }


def shown_in(body: Json) -> Json:
    found: Json = json.loads(body["messages"][1]["content"])
    return found


def verdict(winner: str) -> str:
    return json.dumps({"reason": "so it seems", "winner": winner})


def value_of(text: str, request: str) -> int:
    """How good an answer is: what it says of itself, nothing where it answers another request."""
    found = _QUALITY.search(text)
    return int(found[1]) if found and f"{request} " in text else -1


def fair(body: Json, key: str) -> str:
    """Reads the quality; an answer to another request is worth nothing."""
    shown = shown_in(body)
    first, second = (value_of(shown[place], shown["request"][-1]["content"]) for place in ("first", "second"))
    return verdict("tie" if first == second else "first" if first > second else "second")


def first_always(body: Json, key: str) -> str:
    return verdict("first")


def noisy(share: float) -> Reply:
    """Fair but for a share of pairs, in which it says the opposite in both orders; controls it always gets right."""

    def reply(body: Json, key: str) -> str:
        shown = shown_in(body)
        request = shown["request"][-1]["content"]
        control = -1 in (value_of(shown[place], request) for place in ("first", "second"))
        winner = json.loads(fair(body, key))["winner"]
        if not control and random.Random(request).random() < share:
            winner = {"first": "second", "second": "first", "tie": "tie"}[winner]
        return verdict(winner)

    return reply


def judge_settings(*urls: str, **changes: Any) -> JudgeSettings:
    models = [{"name": f"judge-{at}", "base_url": url, "model": "local", "price": PRICE} for at, url in enumerate(urls)]
    return JudgeSettings.model_validate({"models": models, "budget_usd": 100, **changes})


def judged(
    settings: JudgeSettings, rows: HeldOut, found: dict[str, list[Prediction]], work: Path
) -> tuple[dict[str, list[Prediction]], Outcome]:
    (work / "report").mkdir(exist_ok=True)
    scored, outcome = judge_predictions(
        settings, candidate=STUDENT, baseline=TEACHER, rows=rows, predictions=found,
        shared=Shared("toy", {"kind": "generation"}, "tiny", work / "work" / "toy", "sqlite:///x.db"),
        out=work / "report", how=Resampling(resamples=500),
    )  # fmt: skip
    assert outcome is not None
    return {name: list(each) for name, each in scored.items()}, outcome
