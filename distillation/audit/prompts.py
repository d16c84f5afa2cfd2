"""The prompt versions of a log: which labels each offers, which it lacks, and how good the teacher is under each."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.records import Json

from .agreement import agreement
from .rows import AuditRow, finding

LISTS = 0.5  # a text that names fewer of the labels than this share mentions them by chance, it does not list them
LONGEST_LABEL = 80  # characters of an invalid answer that may still be a label of an older prompt
_VARIES = re.compile(r"\d+")


@dataclass(frozen=True)
class Version:
    """One standing text. `offered` are the task's labels in it, None when it lists none; `foreign` what the teacher
    answered out of the text although it is no label of the task."""

    key: str
    text: str
    rows: tuple[AuditRow, ...]
    offered: frozenset[str] | None
    foreign: tuple[str, ...]

    def lacks(self, labels: Sequence[str]) -> list[str]:
        """Labels of the task that the text does not offer, in the task's order."""
        return [] if self.offered is None else [each for each in labels if each not in self.offered]


def version_key(system: str) -> str:
    """Eight hex digits that name a standing text; texts that differ in numbers alone (dates, counters) share them."""
    return hashlib.sha256(_VARIES.sub("0", system).encode()).hexdigest()[:8]


def prompt_versions(rows: Sequence[AuditRow], labels: Sequence[str]) -> list[Version]:
    """The versions among learnable rows, the most used first."""
    groups: dict[str, list[AuditRow]] = defaultdict(list)
    for row in rows:
        groups[version_key(row.system)].append(row)
    found = []
    for key, members in groups.items():
        text = min(each.system for each in members)
        invalid = Counter(each.said.strip() for each in members if each.teacher is None and each.said.strip())
        ranked = sorted(invalid, key=lambda said: (-invalid[said], said))
        foreign = [said for said in ranked if len(said) <= LONGEST_LABEL and _words([said]).search(text.casefold())]
        found.append(Version(key, text, tuple(members), offered_labels(text, labels), tuple(foreign)))
    return sorted(found, key=lambda each: (-len(each.rows), each.key))


def offered_labels(text: str, labels: Sequence[str]) -> frozenset[str] | None:
    """The labels that stand in the text as whole words (case aside); None when they are too few to be a list.

    Longer labels are looked for first, and what they cover is not searched again: `card payment` does not offer `card`.
    """
    if not labels:
        return None
    by_case = {label.casefold(): label for label in labels}
    offered = frozenset(by_case[each.group()] for each in _words(labels).finditer(text.casefold()))
    return offered if len(offered) >= max(2, LISTS * len(labels)) else None


def _words(words: Sequence[str]) -> re.Pattern[str]:
    """Any of these (in lower case) as a whole word, the longest first."""
    choices = "|".join(re.escape(each.casefold()) for each in sorted(words, key=lambda each: (-len(each), each)))
    return re.compile(rf"(?<![\w-])(?:{choices})(?![\w-])")


def version_facts(version: Version, labels: Sequence[str]) -> Json:
    """What the card says of a version."""
    lacking = version.lacks(labels)
    favoured = Counter(each.correction for each in version.rows if each.correction in lacking)
    return {
        "version": version.key,
        "rows": len(version.rows),
        "begins": " ".join(version.text.split())[:80],
        "offers": None if version.offered is None else len(version.offered),
        "lacks": lacking,
        "corrected_to_lacking": {label: favoured[label] for label in lacking if favoured[label]},
        "offers_beyond_task": list(version.foreign),
        "invalid": sum(each.teacher is None for each in version.rows),
        "teacher": agreement(version.rows).to_json(),
    }


def version_findings(versions: Sequence[Json]) -> list[Json]:
    """A line for each label that a version lacks, those that people ask for first."""
    lines = []
    for each in versions:
        for label in each["lacks"]:
            count = each["corrected_to_lacking"].get(label, 0)
            lines.append(
                finding(
                    "",
                    "label not offered",
                    suggested=label,
                    score=count,
                    action="add it to the prompt",
                    evidence=f"prompt version {each['version']} ({each['rows']:,} rows) never offers it; "
                    f"{count} of its rows were corrected to it",
                )
            )
    return sorted(lines, key=lambda line: (-line["score"], line["evidence"], line["suggested"]))
