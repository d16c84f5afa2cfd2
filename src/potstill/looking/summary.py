"""The page's overview: what came in, what each step left out, what is learnt, and what the manifest says besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.manifest import Manifest
from potstill.records import Json

# In the order in which a row meets them; a step that is not named here comes last.
STEPS = {
    "damaged": "cannot be read",
    "read": "read before",
    "select": "not selected",
    "filter": "filtered",
    "split": "twins of test rows",
    "turns": "learnt in another row",
    "decontaminate": "in an evaluation file",
    "poisoning": "caps and sources that stand out",
    "audit": "dropped by the audit",
    "validate": "nothing valid to learn",
    "choose": "not chosen",
    "boilerplate": "boilerplate",
    "fold": "duplicates",
    "budget": "over the budget",
}
FACTS = (
    "rows", "steps", "redacted", "prompt_rule", "leakage", "preferences", "poisoning", "audit", "relabel", "lengths",
    "seconds", "wall_s",
)  # fmt: skip


def summary(
    folder: Path,
    manifest: Manifest,
    origins: Mapping[str, int],
    answers: Sequence[Json],
    weighted: int,
    rejections: Mapping[str, int],
) -> Json:
    """Figures of the whole dataset, whatever of it the page shows row by row."""
    facts, card = manifest.facts, folder / "card.md"
    return {
        "facts": {name: facts[name] for name in FACTS if name in facts},
        "flow": flow(facts, rejections),
        "origins": dict(origins),
        "answers": list(answers),
        "weighted": weighted,
        "card": card.read_text(encoding="utf-8") if card.is_file() else "",
        "made": {
            "created": manifest.created,
            "command": manifest.command,
            "potstill": manifest.potstill,
            "digest": manifest.digest,
            "commit": manifest.code.get("commit"),
            "inputs": [{"role": each.role, "path": each.path, "digest": each.digest} for each in manifest.inputs],
        },
    }


def flow(facts: Json, rejections: Mapping[str, int]) -> Json:
    """Rows before and after each step that left any out; `made` makes lines and rows add up.

    `made` is above zero where turns of a history became rows, below where several lines make one exchange.
    """
    lines = int((facts.get("read") or {}).get("lines", 0))
    held = sum((facts.get("rows") or {}).values())
    made = held + sum(rejections.values()) - lines
    order = list(STEPS)
    by_step: dict[str, list[Any]] = {}
    for kind, count in rejections.items():
        by_step.setdefault(kind.partition(": ")[0], []).append([kind, count])
    steps, left = [], lines + made
    for step in sorted(by_step, key=lambda each: order.index(each) if each in STEPS else len(order)):
        lost = sum(count for _, count in by_step[step])
        left -= lost
        steps.append({"step": step, "what": STEPS.get(step, step), "lost": lost, "left": left, "kinds": by_step[step]})
    return {"lines": lines, "made": made, "steps": steps, "held": held}
