"""What is fixed before any answer is read, kept where a change shows: plan.json, and a line in each file of answers.

The folder of a report is made anew for every change of the recipe, so a plan.json in it proves little. The answers
are kept (`candidates.answers_path`) and outlive it. Each evaluation writes its plan into those files before it asks
or reads, as one line among the answers. The last plan above the first answer is what the answers were asked under;
a later plan that differs says so in the report, and the gate refuses unless every change makes it harder to pass.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.manifest import Manifest, sha256_json, write_atomically
from potstill.power import DIFFERING, PowerRule, design_effect, power_of, rows_for
from potstill.records import Json

from .candidates import end_line
from .gate import GateRule
from .rows import HeldOut

PLAN = "plan.json"
ROWS = "row_ids_sha256"
# Terms that decide what passes, with the direction that makes it harder; None: no direction does, any change weakens.
HARDER: dict[str, int | None] = {
    "margin": -1, "alpha": -1, "least_power": 1, "basis": None, "metric": None, ROWS: None,
    "gate.baseline": None, "gate.require": None, "gate.min_valid_rate": 1, "gate.max_quantisation_loss": -1,
    "gate.max_slice_loss": -1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """A term of the plan that is not what it was when the first answers were read.

    `allowed`: it only makes the gate harder to pass, or adds rows.
    """

    term: str
    first: Any
    now: Any
    allowed: bool
    candidate: str
    first_plan: str
    first_written: str

    @property
    def words(self) -> str:
        if self.term == "rows" and self.allowed:
            return (
                f"rows were added after answers of {self.candidate} were read ({self.first} then, {self.now} now): "
                "this is a second look, and the level of the interval is that of one"
            )
        if self.term == "rows":
            return f"other rows are judged ({self.now}) than when answers of {self.candidate} were read ({self.first})"
        if self.term == "plan":
            return f"the plan under which the answers of {self.candidate} were first read was not kept"
        return (
            f"{self.term} was {self.first} when the answers of {self.candidate} were first read "
            f"({self.first_written}) and is {self.now} now"
        )


def plan_of(
    terms: Json, rule: GateRule, rows: HeldOut, power: PowerRule, agreement: float | None, asked: float | None
) -> Json:
    """The plan: `terms` (margin, alpha, ...), the gate, the rows, the power to be expected; `digest` is over these."""
    plan = {
        **terms,
        "gate": asdict(rule),
        "rows": len(rows.examples),
        "row_ids_sha256": sha256_json([each.id for each in rows.examples]),
        "least_power": power.least,
        "power": expected(rows.clusters, terms["margin"], terms["alpha"], power, agreement, asked),
    }
    return {"written": datetime.now(UTC).isoformat(timespec="seconds"), "digest": sha256_json(plan), **plan}


def expected(
    clusters: Sequence[str], margin: float, alpha: float, rule: PowerRule, agreement: float | None, asked: float | None
) -> Json:
    """Rows needed and the power of these, assuming how often the two differ.

    A student can be right where its teacher is wrong, or the reverse, only where their answers differ: the share of
    validation rows on which the student did not say what the dataset says bounds it. Unknown: every second row.
    """
    differing, why = DIFFERING, "nothing is known yet: every second row"
    if asked is not None:
        differing, why = asked, "evaluate.plan.differing"
    elif agreement is not None:
        differing, why = 1 - agreement, "validation rows on which the student did not say what the dataset says"
    rows, effect = len(clusters), design_effect(list(Counter(clusters).values()))
    return {
        "rows": rows, "conversations": len(set(clusters)), "differing": differing, "differing_from": why,
        "design_effect": effect,
        "power": power_of(rows, margin, differing, effect, alpha) if rows else 0.0,
        "wanted": rule.wanted, "rows_needed": rows_for(rule.wanted, margin, differing, effect, alpha),
        "least_power": rule.least, "rows_least": rows_for(rule.least, margin, differing, effect, alpha),
    }  # fmt: skip


def validation_agreement(adapter: Manifest) -> float | None:
    """The validation score of the checkpoint that was kept: how often the student said what the dataset says.

    Where the manifest does not say which that is, or it was not scored, the best one.
    """
    training = adapter.facts.get("training", {})
    phase = training.get("then") or training
    scores = dict(phase.get("scores", []))
    found = scores.get(phase.get("best_checkpoint_step"))
    if found is None:
        found = max(scores.values(), default=phase.get("best_score"))
    return None if found is None else min(1.0, max(0.0, float(found)))


def in_words(power: Json, margin: float) -> str:
    """The power in one sentence."""
    needed = f"{power['rows_needed']:,} rows" if power["rows_needed"] else "no number of rows"
    return (
        f"{power['rows']:,} rows of {power['conversations']:,} conversations, margin {margin:g}: a student as good as "
        f"the baseline passes in {power['power']:.0%} of tests if they differ on {power['differing']:.0%} of the rows "
        f"({power['differing_from']}); {needed} would make it {power['wanted']:.0%}"
    )


def write_plan(out: Path, plan: Json) -> None:
    """plan.json; refuses when the folder holds predictions that were judged by another plan."""
    path = out / PLAN
    if path.is_file() and (out / "predictions.parquet").is_file():
        kept = json.loads(path.read_text())
        changed = [term for term in HARDER if _term(kept, term) != _term(plan, term)]
        if changed:
            raise PotstillError(
                f"{path}: predictions stand beside it that were judged by another plan (changed since: "
                f"{', '.join(changed)}); write the report into a folder of its own"
            )
    write_atomically(path, json.dumps(plan, indent=1).encode())


def note_plan(candidate: str, path: Path, plan: Json) -> list[Change]:
    """Write the plan into the file of answers, and say what changed since the first answer in it was read."""
    lines = _lines(path)
    plans = [each["plan"] for each in lines if "plan" in each]
    if not plans or plans[-1]["digest"] != plan["digest"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        end_line(path)
        with path.open("ab") as stream:
            stream.write(json.dumps({"plan": plan}, ensure_ascii=False).encode() + b"\n")
    first: Json | None = None
    for each in lines:
        if "plan" not in each:
            return _changes(candidate, first, plan)
        first = each["plan"]
    return []


def _lines(path: Path) -> list[Json]:
    found = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            data = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        if isinstance(data, dict):
            found.append(data)
    return found


def _changes(candidate: str, first: Json | None, plan: Json) -> list[Change]:
    if first is None:
        return [Change("plan", "not kept", plan["digest"][:12], True, candidate, "", "")]
    found = [
        Change(term, was, now, _harder(term, was, now), candidate, first["digest"], first["written"])
        for term in HARDER
        if term != ROWS and (was := _term(first, term)) != (now := _term(plan, term))
    ]
    if first[ROWS] != plan[ROWS]:
        more = plan["rows"] > first["rows"]
        found.append(Change("rows", first["rows"], plan["rows"], more, candidate, first["digest"], first["written"]))
    return found


def _term(plan: Json, term: str) -> Any:
    found: Any = plan
    for name in term.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _harder(term: str, was: Any, now: Any) -> bool:
    if term == "gate.require":
        return bool(now == "superior")
    direction = HARDER[term]
    if direction is None or now is None:
        return False
    return was is None or (now - was) * direction > 0


def after_answers(changes: Sequence[Change]) -> list[Json]:
    """For the report, the same change of several candidates once."""
    seen: dict[str, Json] = {}
    for each in changes:
        entry = seen.setdefault(each.term, {**asdict(each), "words": each.words, "candidates": []})
        entry["candidates"].append(each.candidate)
        entry["allowed"] = entry["allowed"] and each.allowed
    for entry in seen.values():
        del entry["candidate"]
    return list(seen.values())
