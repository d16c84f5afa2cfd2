"""What is wrong with single rows, and what the policy does about each."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass

from potstill.intervals import wilson
from potstill.records import Json

from .rows import Action, AuditRow, Kind
from .settings import Audit, Change

INVALID, CONTRADICTION, SUSPECT = "invalid answer", "contradiction", "suspect"
LEAST_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Opinion:
    """What is thought of a row's answer: how likely it is right, what would be more likely, and on which grounds."""

    finding: str
    right: float
    suggested: str | None
    likely: float
    evidence: str
    by_people: bool = False  # a correction of the same request says so: no other proof is needed


@dataclass(frozen=True, slots=True)
class Check:
    """The policy tried on corrected rows, each judged as though it had no correction."""

    rows: int
    teacher_right: int
    relabelled: int
    relabelled_right: int
    relabelled_teacher_right: int
    dropped: int
    kept: int
    kept_right: int
    one_sided: bool

    @classmethod
    def of(cls, counts: Counter[str], one_sided: bool) -> Check:
        """From counts of actions (`relabel`), of right ones (`relabel right`) and of right teachers among them."""
        stays = counts["keep"] + counts["reweight"]
        return cls(
            rows=counts["rows"],
            teacher_right=counts["teacher right"],
            relabelled=counts["relabel"],
            relabelled_right=counts["relabel right"],
            relabelled_teacher_right=counts["relabel teacher right"],
            dropped=counts["drop"],
            kept=stays,
            kept_right=counts["keep right"] + counts["reweight right"],
            one_sided=one_sided,
        )

    @property
    def trusted(self) -> bool:
        """Whether suggestions may replace answers: right more often than not, shown on a random sample."""
        return not self.one_sided and wilson(self.relabelled_right, self.relabelled)[0] > 0.5

    def to_json(self) -> Json:
        """Its counts, and the share of right labels in what is learnt before and after, with Wilson's intervals."""
        learnt, right = self.kept + self.relabelled, self.kept_right + self.relabelled_right
        return {
            **asdict(self),
            "trusted": self.trusted,
            "before": _share(self.teacher_right, self.rows),
            "after": _share(right, learnt),
        }


def _share(right: int, of: int) -> Json:
    low, high = wilson(right, of)
    return {"value": right / of if of else None, "low": low, "high": high, "n": of}


def decide(row: AuditRow, opinion: Opinion, settings: Audit, trusted: bool) -> Action:
    """The action of the policy for this finding; a corrected row keeps its correction whatever is found."""
    if row.correction is not None:
        return Action("keep", row.correction, row.weight, opinion.finding)
    kind = _kind(row.teacher, opinion, settings, trusted)
    if kind == "drop":
        return Action("drop", None, 0.0, opinion.finding)
    if kind == "relabel":
        return Action("relabel", opinion.suggested, row.weight, opinion.finding)
    if kind == "reweight":
        weight = row.weight * max(LEAST_WEIGHT, round(opinion.right, 3))
        return Action("reweight", row.teacher, weight, opinion.finding)
    return Action("keep", row.teacher, row.weight, opinion.finding)


def _kind(teacher: str | None, opinion: Opinion, settings: Audit, trusted: bool) -> Kind:
    policies: Mapping[str, Change] = {
        INVALID: settings.invalid,
        CONTRADICTION: settings.contradiction,
        SUSPECT: settings.suspect,
    }
    policy = policies[opinion.finding]
    sure = opinion.suggested is not None and opinion.likely >= settings.relabel_above
    if opinion.finding == INVALID:
        return "relabel" if policy == "relabel" and trusted and sure else "drop"
    if opinion.right >= settings.keep_above or opinion.suggested == teacher:
        return "keep"
    if policy != "relabel":
        return policy
    if not (trusted or opinion.by_people):
        return settings.unverified
    return "relabel" if sure else settings.unsure


def groups(rows: Sequence[AuditRow]) -> list[int]:
    """For each row the place of the first that it hangs together with, by near-identical request or conversation."""
    parent = list(range(len(rows)))

    def find(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    seen: dict[tuple[str, str], int] = {}
    for at, row in enumerate(rows):
        for key in (("cluster", str(row.cluster)), ("conversation", row.conversation)):
            a, b = find(seen.setdefault(key, at)), find(at)
            parent[max(a, b)] = min(a, b)
    return [find(at) for at in range(len(rows))]


def fold_of(seed: int, group: str, folds: int) -> int:
    """A fold that depends on seed and group alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") % folds


def contradictions(rows: Sequence[AuditRow], keys: Sequence[Hashable]) -> list[list[int]]:
    """Places of the rows of each key whose answers (corrections before the teacher's) differ."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        if (row.correction or row.teacher) is not None:
            members[keys[at]].append(at)
    return [m for m in members.values() if len({rows[at].correction or rows[at].teacher for at in m}) > 1]


def tally(rows: Sequence[AuditRow]) -> str:
    """How often each answer was given to requests that are one."""
    counts = Counter(each.correction or each.teacher or "" for each in rows)
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    said = ", ".join(f"{answer[:60]} ({count})" for answer, count in ranked)
    return f"{len(rows)} near-identical requests were answered {said}"


def by_frequency(rows: Sequence[AuditRow]) -> list[Opinion]:
    """What a contradictory group itself says of each of its rows: a correction settles it, if there is but one;
    else an answer is as likely right as it is frequent."""
    counts = Counter(each.correction or each.teacher or "" for each in rows)
    corrected = {each.correction for each in rows if each.correction is not None}
    settled = next(iter(corrected)) if len(corrected) == 1 else None
    top, count = min(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    grounds = tally(rows)
    return [
        Opinion(
            CONTRADICTION,
            right=counts[each.teacher or ""] / len(rows) if settled is None else float(each.teacher == settled),
            suggested=settled or top,
            likely=1.0 if settled else count / len(rows),
            evidence=grounds,
            by_people=settled is not None,
        )
        for each in rows
    ]
