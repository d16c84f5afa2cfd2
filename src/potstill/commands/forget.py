"""`potstill forget`: the plan, and with --yes the doing of it."""

from __future__ import annotations

import argparse
import getpass
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from potstill.errors import RecipeError
from potstill.forgetting.act import Outcome, forget, look
from potstill.forgetting.plan import WORDS, Plan, Trace
from potstill.forgetting.suppressed import Kind
from potstill.forgetting.tombstone import WORDS as AGAIN
from potstill.records import Json


def forget_command(arguments: argparse.Namespace) -> int:
    """Show what knows a user, a conversation or an exchange; with --yes take it out, mark and record."""
    work = Path(arguments.work_dir).resolve()
    if not work.is_dir():
        raise RecipeError([f"--work-dir {work}: no such folder; give the working folder of the recipes"])
    kind, value = _asked(arguments)
    if not arguments.yes:
        plan = look(work, kind, value)
        print(json.dumps(_json(plan)) if arguments.json else _text(plan, done=False))
        return 0
    outcome = forget(
        work,
        kind,
        value,
        by=arguments.by or getpass.getuser(),
        why=arguments.why or "",
        refuse=arguments.refuse,
        tag=_tagger(arguments.tracking_uri, work, arguments.refuse),
    )
    print(json.dumps(_json(outcome.plan, outcome)) if arguments.json else _done(outcome))
    return 0


def _asked(arguments: argparse.Namespace) -> tuple[Kind, str]:
    kinds: tuple[Kind, ...] = ("user", "exchange", "conversation")
    return next((kind, value) for kind in kinds if (value := getattr(arguments, kind)))


def _tagger(uri: str | None, work: Path, refuse: bool) -> Callable[[Sequence[Trace], str], int] | None:
    """What marks registered versions: those of the address given, or of the working folder's own MLflow."""
    if uri is None and not (work / "mlflow.db").is_file():
        return None

    def tag(traces: Sequence[Trace], record: str) -> int:
        from potstill.tracking import default_uri, open_tracking
        from potstill.tracking_forgotten import tag_versions

        marked = {each.digest: AGAIN[each.again] for each in traces if each.again is not None}
        return tag_versions(open_tracking(uri or default_uri(work)), marked, record, refuse=refuse)

    return tag


def _json(plan: Plan, outcome: Outcome | None = None) -> Json:
    found: Json = {
        "kind": plan.wanted.kind,
        "exchanges": len(plan.wanted.ids),
        "recipes": plan.recipes,
        "found": [each.to_json() for each in plan.traces],
        "done": outcome is not None and outcome.record is not None,
    }
    if outcome is not None:
        found |= {"record": str(outcome.record) if outcome.record else None, "versions": outcome.versions}
    return found


def _text(plan: Plan, done: bool) -> str:
    if not plan.traces:
        return f"nothing below the working folder, and no log that its datasets name, knows this {plan.wanted.kind}"
    count = len(plan.wanted.ids)
    lines = [f"{count:,} exchange{'' if count == 1 else 's'} found; {'done' if done else 'would be done'}:"]
    for each in sorted(plan.traces, key=lambda each: (each.act in ("suppress", "look"), each.act == "mark")):
        words = AGAIN[each.again] if each.act == "mark" and each.again else WORDS[each.act]
        rows = f" ({each.rows:,})" if each.rows else ""
        lines.append(f"  {each.kind} {each.path}{rows}: {words}")
    for recipe in plan.recipes:
        lines.append(f"  recipe {recipe}: `potstill run` makes its dataset again without these rows, and retrains")
    if not done:
        lines.append("nothing was changed; do it with --yes")
    return "\n".join(lines)


def _done(outcome: Outcome) -> str:
    if outcome.record is None:
        before = f" (forgotten before: {', '.join(outcome.before)})" if outcome.before else ""
        return f"nothing to do: nothing that is ours holds this {outcome.plan.wanted.kind}{before}"
    tagged = f"\n  {outcome.versions} registered versions tagged" if outcome.versions else ""
    return f"{_text(outcome.plan, done=True)}{tagged}\nrecord: {outcome.record}"
