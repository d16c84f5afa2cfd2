"""From rows to decided answers: ask, read, vote or judge, and say what it cost and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.errors import RecipeError
from potstill.intervals import wilson
from potstill.records import Json, Message
from potstill.tasks.base import Task

from .ask import OUT_OF_BUDGET, Tally, ask_all
from .judge import judge_asks, verdict
from .ledger import PICO, Ledger
from .request import Ask, ask_for
from .rows import Relabelled, RelabelRow
from .settings import Relabel
from .vote import Candidate, candidates, read_answer, same, vote


@dataclass(slots=True)
class Case:
    """One row on its way: its requests, what the samples said, and what was decided by whom."""

    row: RelabelRow
    asks: list[Ask]
    old: Any | None
    values: list[Any]
    found: list[Candidate]
    asked: int = 0
    reason: str | None = None
    decided: Candidate | None = None
    judged: Candidate | None = None


def relabel(settings: Relabel, task: Task, rows: Sequence[RelabelRow], cache: Path) -> tuple[list[Relabelled], Json]:
    """One Relabelled a row in the order given, and facts for the data card.

    `cache` is the folder of the ledger (`relabel.sqlite`). Facts are the same however often the run was killed, except
    those under `run`, which are of this call and of the ledger as it stands. Raises PotstillError when the teacher
    refuses the key or does not answer at all; what was paid for is kept.
    """
    with Ledger(cache / "relabel.sqlite", round(settings.budget_usd * PICO)) as ledger:
        cases = open_cases(settings, task, rows)
        ledger.asked_for((ask.key, case.row.id) for case in cases for ask in case.asks)
        tally = ask_all([ask for case in cases for ask in case.asks], settings.teacher, settings, ledger)
        for case in cases:
            read_samples(task, case, ledger, tally)
        asks = [ask for case in cases for ask in case.asks]
        if settings.decide == "judge":
            asks += judge(settings, cases, ledger, tally)
        results = [settle_case(task, case) for case in cases]
        return results, facts(settings, task, cases, asks, ledger, tally)


def open_cases(settings: Relabel, task: Task, rows: Sequence[RelabelRow]) -> list[Case]:
    """The requests of every row; nothing is sent yet."""
    system = _system_prompt(settings)
    cases = []
    for row in rows:
        if system is not None:
            kept = [each for each in row.messages if each.get("role") not in ("system", "developer")]
            row = replace(row, messages=[system, *kept])
        asks = [
            ask_for(
                settings,
                settings.teacher,
                row.messages,
                tools=row.tools,
                constraint=task.constraint() if settings.constrain else None,
                temperature=settings.temperature,
                sample=sample,
            )
            for sample in range(settings.samples)
        ]
        cases.append(Case(row, asks, _value(task, row, row.teacher_answer), [], []))
    return cases


def _system_prompt(settings: Relabel) -> Message | None:
    if settings.system_prompt is None:
        return None
    try:
        text = Path(settings.system_prompt).read_text(encoding="utf-8").strip()
    except OSError as fault:
        raise RecipeError([f"relabel.system_prompt: {settings.system_prompt}: {fault.strerror}"]) from fault
    return {"role": "system", "content": text}


def _value(task: Task, row: RelabelRow, text: str | None) -> Any | None:
    return None if text is None else task.parse(text, row.tools).value


def read_samples(task: Task, case: Case, ledger: Ledger, tally: Tally) -> None:
    """What the samples say, and the vote over them; a row whose samples the budget cut short is not decided."""
    invalid = []
    for ask in case.asks:
        paid = ledger.answer(ask.key)
        if paid is None:
            case.reason = tally.unsettled.get(ask.key, "in flight in another process")
            continue
        case.asked += 1
        parsed = read_answer(task, paid, case.row.tools)
        if parsed.valid:
            case.values.append(parsed.value)
        else:
            invalid.append(str(parsed.reason))
    case.found = candidates(task, case.values, case.old)
    if case.reason == OUT_OF_BUDGET:
        return
    case.decided = vote(task, case.found, case.old)
    if case.decided is None:
        case.reason = f"no valid answer: {invalid[0]}" if invalid else case.reason


def judge(settings: Relabel, cases: Sequence[Case], ledger: Ledger, tally: Tally) -> list[Ask]:
    """Let the judge decide between answers that differ; where it does not decide, the vote stands."""
    open_to_judge = [case for case in cases if case.decided is not None and len(case.found) > 1]
    asks = [judge_asks(settings, case.row, case.found) for case in open_to_judge]
    flat = [ask for each in asks for ask in each]
    rows = zip(open_to_judge, asks, strict=True)
    ledger.asked_for((ask.key, case.row.id) for case, each in rows for ask in each)
    tally.add(ask_all(flat, settings.judge_teacher, settings, ledger))
    for case, each in zip(open_to_judge, asks, strict=True):
        case.judged = verdict(case.row, case.found, [ledger.answer(ask.key) for ask in each])
        case.decided = case.judged or case.decided
    return flat


def settle_case(task: Task, case: Case) -> Relabelled:
    texts = tuple(task.canonical(value) for value in case.values)
    if case.decided is None:
        return Relabelled(case.row.id, None, 0.0, texts, case.asked, case.reason)
    share = case.decided.votes / len(case.values)
    return Relabelled(case.row.id, case.decided.text, share, texts, case.asked, None)


def facts(
    settings: Relabel, task: Task, cases: Sequence[Case], asks: Sequence[Ask], ledger: Ledger, tally: Tally
) -> Json:
    """Counts, money and agreement; every rate with Wilson's 95 % interval."""
    keys = {ask.key for ask in asks}
    answers = [paid for key in keys if (paid := ledger.answer(key)) is not None]
    decided = [case for case in cases if case.decided is not None and case.values]
    sums = ledger.sums()
    return {
        "rows": len(cases),
        "decided": len(decided),
        "requests": len(keys),
        "answered": len(answers),
        "valid_samples": sum(len(case.values) for case in cases),
        "cost_usd": sum(paid.cost for paid in answers) / PICO,
        "unmetered_answers": sum(paid.prompt_tokens is None for paid in answers),
        "refused_by_budget": sum(reason == OUT_OF_BUDGET for reason in tally.unsettled.values()),
        "unsettled": len(keys) - len(answers),
        "changed": sum(not _is(task, case.decided, case.old) for case in decided),
        "vote_agreement": _mean([max(each.votes for each in case.found) / len(case.values) for case in decided]),
        "agreement_with_corrections": agreement_with_corrections(task, decided),
        "judge": judge_facts(task, cases) if settings.decide == "judge" else None,
        "run": {
            "asked": tally.sent,
            "from_cache": tally.from_cache,
            "paid_usd": tally.paid / PICO,
            "failures": dict(sorted(tally.failures.items())),
            "left_unknown_by_kills": ledger.orphaned(sorted(keys)),
            "ledger_paid_usd": sums.paid / PICO,
            "ledger_doubtful_usd": sums.doubtful / PICO,
            "ledger_counted_usd": sums.counted / PICO,
        },
    }


def agreement_with_corrections(task: Task, decided: Sequence[Case]) -> Json:
    """How often the new and the old answers are what users corrected them to, on the same rows."""
    corrected = [(case, gold) for case in decided if (gold := _value(task, case.row, case.row.correction)) is not None]
    new = sum(_is(task, case.decided, gold) for case, gold in corrected)
    old = sum(case.old is not None and same(task, case.old, gold) for case, gold in corrected)
    return {"new": rate(new, len(corrected)), "old": rate(old, len(corrected))}


def judge_facts(task: Task, cases: Sequence[Case]) -> Json:
    """How often the judge decides, and picks the correction where it is among the candidates (the vote beside it)."""
    shown = [case for case in cases if case.decided is not None and len(case.found) > 1]
    answerable = []
    for case in shown:
        gold = _value(task, case.row, case.row.correction)
        if gold is not None and any(same(task, each.value, gold) for each in case.found):
            answerable.append((case, gold))
    picked = sum(case.judged is not None and _is(task, case.judged, gold) for case, gold in answerable)
    voted = sum(_is(task, vote(task, case.found, case.old), gold) for case, gold in answerable)
    return {
        "shown": len(shown),
        "undecided": sum(case.judged is None for case in shown),
        "agreement_with_corrections": rate(picked, len(answerable)),
        "vote_on_the_same_rows": rate(voted, len(answerable)),
    }


def _is(task: Task, candidate: Candidate | None, gold: Any | None) -> bool:
    return candidate is not None and gold is not None and same(task, candidate.value, gold)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def rate(hits: int, count: int) -> Json:
    """A share with Wilson's 95 % interval (Wilson 1927); null where there is nothing to count."""
    if count == 0:
        return {"hits": 0, "of": 0, "rate": None, "low": None, "high": None}
    low, high = wilson(hits, count)
    return {"hits": hits, "of": count, "rate": hits / count, "low": low, "high": high}
