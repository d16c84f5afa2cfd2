"""The audit: every finding of a log, what is done about it, and the section of the data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from potstill.records import Json
from potstill.tasks import Task

from .agreement import agreement, rates_differ
from .findings import (
    CONTRADICTION,
    INVALID,
    SUSPECT,
    Check,
    Opinion,
    by_frequency,
    contradictions,
    decide,
    fold_of,
    groups,
    tally,
)
from .prompts import Version, prompt_versions, version_facts, version_findings, version_key
from .report import card_section, row_finding
from .rows import Action, Audited, AuditRow
from .settings import Audit

NOT_RANDOM_Z, NOT_RANDOM_POINTS = 3.29, 0.05  # p < 0.001, and large enough to matter


@dataclass(frozen=True)
class Model:
    """What the out-of-fold model says of rows, by place, and what is known of itself."""

    opinions: dict[int, Opinion]
    facts: Json
    followed: bool = False  # whether suggestions may replace answers


def audit(settings: Audit, task: Task, rows: Sequence[AuditRow]) -> Audited:
    """Findings and actions over training and validation rows; the same for every order of the rows."""
    if not settings.enabled:
        return Audited(facts={"enabled": False}, card=["Not audited (`distill.audit.enabled: false`)."])
    seen = sorted((each for each in rows if each.learnable), key=lambda each: each.id)
    labels: tuple[str, ...] = getattr(task, "labels", ())
    versions = prompt_versions(seen, labels)
    opinions: dict[int, Opinion] = {
        at: Opinion(INVALID, 0.0, None, 0.0, each.invalid_reason or "not an answer of the task")
        for at, each in enumerate(seen)
        if each.teacher is None and each.correction is None
    }
    if labels:
        model = judge_labels(settings, labels, seen, versions)
        clusters: Sequence[Hashable] = [each.cluster for each in seen]
    else:
        model = Model({}, {"examined": 0, "why_none": f"no classifier for {task.kind}"})
        clusters = [(" ".join(each.asked.casefold().split()), version_key(each.system)) for each in seen]
    conflicts = contradictions(seen, clusters)
    for places in conflicts:
        for at, opinion in zip(places, by_frequency([seen[at] for at in places]), strict=True):
            opinions[at] = opinion
    opinions |= model.opinions
    policy = settings.model_copy(update={"contradiction": "keep"}) if task.kind == "generation" else settings
    actions = {at: decide(seen[at], opinion, policy, model.followed) for at, opinion in opinions.items()}
    facts: Json = {
        "enabled": True,
        "rows": dict(sorted(Counter(each.split for each in rows).items())),
        "teacher": agreement(seen).to_json()
        | {"doubtful": bool(model.facts.get("corrections_random", {}).get("differs"))},
        "prompt_versions": [version_facts(each, labels) for each in versions],
        "invalid": _invalid(seen),
        "contradictions": {"groups": len(conflicts), "rows": sum(map(len, conflicts))},
        "model": model.facts,
        "findings": _counts(opinion.finding for opinion in opinions.values()),
        "actions": _counts(f"{each.finding}: {each.kind}" for each in actions.values()),
    }
    table = version_findings(facts["prompt_versions"]) + [
        row_finding(seen[at], opinions[at], actions[at])
        for at in sorted(opinions, key=lambda at: (opinions[at].right, seen[at].id))
    ]
    return Audited(_by_row(seen, actions), table, facts, card_section(facts))


def _by_row(seen: Sequence[AuditRow], actions: dict[int, Action]) -> dict[int, Action]:
    return {seen[at].row: actions[at] for at in sorted(actions)}


def _counts(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0])))


def _invalid(rows: Sequence[AuditRow]) -> dict[str, Any]:
    texts = _counts(each.said.strip()[:80] for each in rows if each.teacher is None)
    return {"rows": sum(texts.values()), "most": dict(list(texts.items())[:20])}


def judge_labels(
    settings: Audit, labels: Sequence[str], seen: Sequence[AuditRow], versions: Sequence[Version]
) -> Model:
    """The opinion of the out-of-fold model on every row whose answer it doubts, and on contradictory clusters."""
    shown = {each.correction or each.teacher for each in seen} - {None}
    if len(seen) < settings.min_rows or len(shown) < 2:
        reason = (
            f"{len(seen)} rows and {len(shown)} different answers; {settings.min_rows} rows and two answers are needed"
        )
        return Model({}, {"examined": 0, "why_none": reason})
    from .evidence import evidence_of, pooled, sample
    from .suspects import judge

    places = sample(seen, settings)
    rows = [seen[at] for at in places]
    members = groups(rows)
    folds = [fold_of(settings.seed, rows[first].id, settings.folds) for first in members]
    judged = judge(evidence_of(rows, labels, versions, folds, agreement(rows)), settings.rounds)
    random = _corrections_look_random(rows, labels, judged.first.argmax(axis=1))
    opinions = {at: _opinion(rows[at], labels, judged.posterior[at]) for at in range(len(rows))}
    check = _check(rows, opinions, settings, one_sided=agreement(rows).one_sided or random["differs"])
    doubted = {
        at: opinion
        for at, opinion in opinions.items()
        if rows[at].correction is None and (opinion.finding == INVALID or opinion.right < settings.keep_above)
    }
    for conflict in contradictions(rows, [each.cluster for each in rows]):
        together, grounds = pooled(judged, rows, conflict, labels), tally([rows[at] for at in conflict])
        for at in conflict:
            doubted[at] = replace(_opinion(rows[at], labels, together), finding=CONTRADICTION, evidence=grounds)
    facts: Json = {
        "examined": len(rows),
        "not_examined": len(seen) - len(rows),
        "wrong_rate": judged.wrong_rate,
        "temperature": judged.temperature,
        "corrections_random": random,
        "check": check.to_json(),
        "followed": check.trusted or settings.relabel_without_proof,
    }
    return Model({places[at]: opinion for at, opinion in doubted.items()}, facts, facts["followed"])


def _opinion(row: AuditRow, labels: Sequence[str], probabilities: Any) -> Opinion:
    best = int(probabilities.argmax())
    likely = float(probabilities[best])
    if row.teacher is None:
        grounds = f"{row.invalid_reason or 'invalid'}; out of fold: {labels[best]} {likely:.2f}"
        return Opinion(INVALID, 0.0, labels[best], likely, grounds)
    right = float(probabilities[labels.index(row.teacher)])
    grounds = f"out of fold: {labels[best]} {likely:.2f}, {row.teacher} {right:.2f}; asked: {row.asked[:120]!r}"
    return Opinion(SUSPECT, right, labels[best], likely, grounds)


def _check(rows: Sequence[AuditRow], opinions: dict[int, Opinion], settings: Audit, one_sided: bool) -> Check:
    """The policy on corrected rows, as though none were corrected and suggestions trusted."""
    counts: Counter[str] = Counter()
    for at, row in enumerate(rows):
        if row.correction is None:
            continue
        action = decide(replace(row, correction=None), opinions[at], settings, trusted=True)
        counts["rows"] += 1
        counts["teacher right"] += row.teacher == row.correction
        counts[action.kind] += 1
        counts[f"{action.kind} right"] += action.answer == row.correction
        counts[f"{action.kind} teacher right"] += row.teacher == row.correction
    return Check.of(counts, one_sided)


def _corrections_look_random(rows: Sequence[AuditRow], labels: Sequence[str], best: Any) -> dict[str, Any]:
    """Whether the model agrees with the teacher as often on corrected rows as on others (it saw neither's label)."""
    agreed, total = Counter[bool](), Counter[bool]()
    for row, guess in zip(rows, best, strict=True):
        if row.teacher is not None:
            total[row.correction is not None] += 1
            agreed[row.correction is not None] += labels[int(guess)] == row.teacher
    z = rates_differ(agreed[True], total[True], agreed[False], total[False])
    shares = [agreed[each] / total[each] if total[each] else None for each in (True, False)]
    apart = abs(shares[0] - shares[1]) if shares[0] is not None and shares[1] is not None else 0.0
    return {
        "model_agrees_corrected": shares[0],
        "model_agrees_others": shares[1],
        "z": z,
        "differs": z is not None and abs(z) > NOT_RANDOM_Z and apart > NOT_RANDOM_POINTS,
    }
