"""The audit as a person reads it: a section of the data card, and the table of findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.intervals import wilson
from potstill.records import Json

from .findings import Opinion
from .rows import Action, AuditRow, finding

MOST_VERSIONS = 8
MOST_NAMES = 40


def row_finding(row: AuditRow, opinion: Opinion, action: Action) -> Json:
    """A row's line of the table."""
    said = row.teacher if row.teacher is not None else row.said.strip()[:80] or None
    return finding(
        row.id,
        opinion.finding,
        teacher=said,
        suggested=opinion.suggested,
        score=1 - opinion.right,
        action=action.kind,
        evidence=opinion.evidence,
    )


def card_section(facts: Json) -> list[str]:
    """Markdown lines: how good the teacher is, under which prompt, what is suspect and what was done about it."""
    return [
        *_teacher(facts["teacher"], facts["model"].get("corrections_random")),
        "",
        *_versions(facts["prompt_versions"]),
        "",
        *_answers(facts),
        "",
        *_model(facts["model"]),
    ]


def _teacher(teacher: Json, random: Json | None) -> list[str]:
    if teacher["value"] is None:
        return [f"No estimate of the teacher's accuracy: {teacher['why_none']}."]
    lines = [
        f"The teacher is right in an estimated {teacher['value']:.1%} [{teacher['low']:.1%}, {teacher['high']:.1%}] of "
        f"its answers: it agrees with {teacher['agreed']:,} of {teacher['corrected']:,} corrections. "
        f"This assumes that {teacher['assumes']}."
    ]
    if random and random["differs"]:
        lines.append(
            "The corrected rows do not look like a random sample: a model that saw neither agrees with the teacher on "
            f"{random['model_agrees_corrected']:.1%} of them and on {random['model_agrees_others']:.1%} of the others. "
            "The estimate holds for corrected rows alone, and no answer is replaced on the strength of it."
        )
    elif random and random["z"] is not None:
        lines.append(
            "Nothing speaks against a random sample: a model that saw neither agrees with the teacher on "
            f"{random['model_agrees_corrected']:.1%} of the corrected rows and {random['model_agrees_others']:.1%} of "
            "the others."
        )
    return lines


def _versions(versions: Sequence[Json]) -> list[str]:
    lines = table(
        ["prompt version", "rows", "begins", "labels offered", "lacking", "invalid", "teacher right, by corrections"],
        [
            [
                each["version"],
                each["rows"],
                each["begins"],
                "no list" if each["offers"] is None else each["offers"],
                len(each["lacks"]),
                each["invalid"],
                _rate(each["teacher"]),
            ]
            for each in versions[:MOST_VERSIONS]
        ],
    )
    if len(versions) > MOST_VERSIONS:
        rest = versions[MOST_VERSIONS:]
        lines += ["", f"{len(rest):,} more versions hold {sum(each['rows'] for each in rest):,} rows."]
    for each in versions[:MOST_VERSIONS]:
        if each["lacks"]:
            asked = each["corrected_to_lacking"]
            lines += [
                "",
                f"Prompt version {each['version']} never offers {_names(each['lacks'])}"
                + (f"; people corrected to {_names(f'{k} ({v})' for k, v in asked.items())}." if asked else "."),
            ]
        if each["offers_beyond_task"]:
            lines += ["", f"It offers, and was answered, what is no label: {_names(each['offers_beyond_task'])}."]
    return lines


def _rate(teacher: Json) -> str:
    if teacher["value"] is None:
        return f"{teacher['agreed']} of {teacher['corrected']}"
    return f"{teacher['value']:.1%} [{teacher['low']:.1%}, {teacher['high']:.1%}] of {teacher['corrected']:,}"


def _names(names: Any) -> str:
    listed = list(names)
    more = f" and {len(listed) - MOST_NAMES:,} more" if len(listed) > MOST_NAMES else ""
    return ", ".join(listed[:MOST_NAMES]) + more


def _answers(facts: Json) -> list[str]:
    if not facts["actions"]:
        return ["No answer is in doubt."]
    counts = [(*name.split(": "), count) for name, count in facts["actions"].items()]
    clusters = facts["contradictions"]
    return [
        *table(["finding", "what was done", "rows"], counts),
        "",
        f"{clusters['groups']:,} groups of near-identical requests ({clusters['rows']:,} rows) have different answers.",
    ]


def _model(model: Json) -> list[str]:
    if not model["examined"]:
        return [f"Answers were not compared with a model's: {model['why_none']}."]
    check = model["check"]
    lines = [
        f"Suspects come from a classifier out of fold over {model['examined']:,} rows"
        + (f" ({model['not_examined']:,} more were not examined)." if model["not_examined"] else ".")
    ]
    if check["rows"]:
        low, high = wilson(check["relabelled_right"], check["relabelled"])
        lines.append(
            f"Tried on {check['rows']:,} corrected rows as though they had no correction, it replaces "
            f"{check['relabelled']:,} answers, {check['relabelled_right']:,} of them rightly "
            f"[{low:.1%}, {high:.1%}] (the teacher was right in {check['relabelled_teacher_right']:,}), drops "
            f"{check['dropped']:,} and keeps {check['kept']:,}, {check['kept_right']:,} rightly."
        )
    if check["trusted"]:
        lines.append(
            f"Right labels among what is learnt from rows without a correction: {check['before']['value']:.1%} before, "
            f"{check['after']['value']:.1%} [{check['after']['low']:.1%}, {check['after']['high']:.1%}] after."
        )
    else:
        lines.append(
            "No random sample of corrections proves that its suggestions are more often right than not"
            + (
                ": they are followed all the same (`relabel_without_proof`)."
                if model["followed"]
                else ": none is followed."
            )
        )
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table; bars in cells are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = (f"{each:,}" if isinstance(each, int) else str(each).replace("|", "\\|") for each in row)
        lines.append("| " + " | ".join(cells) + " |")
    return lines
