"""Rows of a dataset folder as the page holds them. Whatever is not text a row needs is left in the Parquet files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.rejections import TWINS, kind_of

from .prompts import Texts, compared, cut, limit_for, turns

KEPT_COLUMNS = (
    "id", "conversation", "messages", "full_messages", "answer", "teacher_answer", "teacher_text", "tools", "learn",
    "corrected", "weight", "count", "cluster", "prompt_tokens", "completion_tokens", "latency_ms", "cost_usd",
    "metadata",
)  # fmt: skip
PLAIN = (
    "id", "conversation", "learn", "weight", "count", "cluster", "prompt_tokens", "completion_tokens", "latency_ms",
    "cost_usd",
)  # fmt: skip
WITHHELD = "a twin of a sealed row: its text is not shown, since it may be that row's own"


@dataclass
class Page:
    """What all rows of one page share: the prompt rule, the texts that stand once, characters for each row."""

    rule: PromptRule
    budget: int
    texts: Texts = field(default_factory=Texts)


def kept_row(page: Page, row: Mapping[str, Any], split: str) -> Json:
    """A row of an open split: its prompt with what the student sees of it, and what is learnt against what was said."""
    messages, full = json.loads(row["messages"]), json.loads(row["full_messages"])
    answers = [row["answer"], row["teacher_answer"], row["teacher_text"]]
    limit = limit_for(answers, page.budget)
    out: Json = {name: row[name] for name in PLAIN if row[name] is not None}
    out |= {"split": split, "origin": origin_of(row), "answer": cut(row["answer"], limit)}
    out["teacher"] = None if row["teacher_answer"] is None else cut(row["teacher_answer"], limit)
    if row["teacher_text"] != row["teacher_answer"]:
        out["said"] = cut(row["teacher_text"], limit)
    prompt = compared(full, messages, page.rule, page.texts, page.budget)
    if prompt is None:
        out |= {"prompt": turns(full, page.budget), "student": turns(messages, page.budget)}
    else:
        out["prompt"] = prompt
    return out | _tools(page, json.loads(row["tools"])) | _metadata(json.loads(row["metadata"]))


def origin_of(row: Mapping[str, Any]) -> str:
    """Whose answer is learnt: the `teacher`'s, `confirmed` or `corrected` by a person, or `changed` since."""
    same = row["answer"] == row["teacher_answer"]
    if row["corrected"]:
        return "confirmed" if same else "corrected"
    return "teacher" if same else "changed"


def _tools(page: Page, tools: list[Any]) -> Json:
    return {"tools": page.texts.number(json.dumps(tools, ensure_ascii=False, indent=1))} if tools else {}


def _metadata(metadata: Any) -> Json:
    return {"metadata": {str(key): _short(value) for key, value in metadata.items()}} if metadata else {}


def _short(value: Any) -> str:
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 2_000)


def representative(reason: str) -> str | None:
    """The id of the kept row that a duplicate is folded into."""
    twin = next((each for each in TWINS if reason.startswith(f"{each} ")), None)
    return reason[len(twin) + 1 :] if twin else None


def rejected_row(page: Page, row: Mapping[str, Any], known: bool) -> Json:
    """A row that was left out. `known`: a row with the same id stands in an open split or was left out too.

    A twin of a test row is shown without its text, and so is a second row with an id that only a test row can have.
    """
    out: Json = {name: row[name] for name in ("id", "source", "line", "step", "reason") if row[name] is not None}
    out["kind"] = kind_of(row["step"], row["reason"])
    if row["step"] == "split" or (row["step"] == "read" and row["id"] is not None and not known):
        return out | {"withheld": WITHHELD}
    try:
        content = json.loads(row["row"] or "")
    except ValueError:
        content = None
    if isinstance(content, dict):
        try:
            return out | (_exchange(page, content) if "request" in content else _example(page, content))
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            pass  # damaged in a way of its own: shown as it was logged
    return out | {"raw": cut(row["row"] or "", page.budget)}


def _example(page: Page, content: Mapping[str, Any]) -> Json:
    limit = limit_for([content.get("answer"), content.get("teacher")], page.budget)
    found: Json = {"prompt": turns(content["messages"], page.budget)}
    for name in ("answer", "teacher"):
        if content.get(name) is not None:
            found[name] = cut(content[name], limit)
    return found


def _exchange(page: Page, content: Mapping[str, Any]) -> Json:
    request, answer = content["request"], content["response"]["choices"][0]["message"]
    full = request["messages"]
    prompt = compared(full, page.rule.apply(full), page.rule, page.texts, page.budget)
    found: Json = {"prompt": prompt or turns(full, page.budget), "said": turns([answer], page.budget)[0]}
    if content.get("feedback"):
        found["feedback"] = [_short(each) for each in content["feedback"]]
    return found | _tools(page, request.get("tools") or []) | _metadata(content.get("metadata"))


def judged_row(page: Page, row: Mapping[str, Any]) -> Json:
    """A preference pair or a single opinion of an open split."""
    names = ("chosen", "rejected") if "chosen" in row else ("answer",)
    limit = limit_for([row[name] for name in names], page.budget)
    out: Json = {name: row[name] for name in ("id", "conversation", "source", "split")}
    out |= {name: cut(row[name], limit) for name in names}
    if "desirable" in row:
        out["desirable"] = row["desirable"]
    out["prompt"] = turns(json.loads(row["messages"]), page.budget)
    return out | _tools(page, json.loads(row["tools"])) | _metadata(json.loads(row["metadata"]))
