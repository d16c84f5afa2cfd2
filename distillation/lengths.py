"""How long the rows are, in tokens of the base (in characters when no tokenizer is installed)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from potstill.progress import say
from potstill.records import Example, Json
from potstill.stage import Shared

from .duplicates import prompt_text


def row_lengths(shared: Shared, splits: Mapping[Any, Sequence[Example]]) -> Json:
    """Median, 95th percentile and longest of prompt, full prompt and answer, a split."""
    count, unit = _counter(shared)
    report: Json = {}
    for name, rows in splits.items():
        report[name] = {
            part: _summary(count([text(each) for each in rows]), unit)
            for part, text in (
                ("prompt", lambda each: prompt_text(each.messages)),
                ("prompt as logged", lambda each: prompt_text(each.full_messages)),
                ("answer", lambda each: each.answer),
            )
        }
    return report


def _counter(shared: Shared) -> tuple[Callable[[list[str]], list[int]], str]:
    try:
        from potstill.chat import load_tokenizer
        from potstill.models import resolve_base

        tokenizer = load_tokenizer(resolve_base(shared.base_model, shared.cache_dir).path)
    except ModuleNotFoundError as fault:
        say(f"lengths are in characters: {fault.name} is not installed")
        return (lambda texts: [len(each) for each in texts]), "characters"

    def tokens(texts: list[str]) -> list[int]:
        distinct = list(dict.fromkeys(texts))  # a standing instruction is the same in every row
        found = dict(zip(distinct, map(len, tokenizer(distinct, add_special_tokens=False)["input_ids"]), strict=True))
        return [found[each] for each in texts]

    return tokens, "tokens"


def _summary(lengths: list[int], unit: str) -> Json:
    ranked = sorted(lengths) or [0]
    return {
        "median": ranked[len(ranked) // 2],
        "p95": ranked[min(len(ranked) - 1, int(len(ranked) * 0.95))],
        "longest": ranked[-1],
        "total": sum(ranked),
        "unit": unit,
    }
