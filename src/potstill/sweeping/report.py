"""What a sweep found: the table, what the evidence allows to say of the best, and the overrides to use."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from potstill.recipe import Recipe
from potstill.records import Json

from .proposals import importances
from .rows import Metric, Row, ranked
from .spaces import as_text, overrides, settings_of

SCORE = "validation score"


def report(recipe: Recipe, key: str, rows: Sequence[Row]) -> Json:
    """The sweep as one JSON object; `undecided` is whether the best is told apart from neither of its rivals."""
    settings = settings_of(recipe)
    order = ranked(rows, settings.metric)
    best = order[0] if order else None
    comparisons = _comparisons(order, settings.metric)
    words = overrides(best.values) if best and not best.default else []
    command = shlex.join(["potstill", "run", str(recipe.path), *_kept_overrides(recipe, words), *words])
    return {
        "sweep": key,
        "recipe": str(recipe.path),
        "name": recipe.shared.name,
        "metric": settings.metric,
        "seed": settings.seed,
        "keys": {name: space.model_dump(mode="json", exclude_none=True) for name, space in settings.keys.items()},
        "trials": [asdict(row) | {"values": dict(row.values), "curve": list(row.curve)} for row in rows],
        "best": None if best is None else best.number,
        "comparisons": comparisons,
        "undecided": any(each["undecided"] for each in comparisons),
        "importances": importances(settings.keys, rows, settings.metric),
        "overrides": words,
        "command": command if best else None,
    }


def _kept_overrides(recipe: Recipe, words: Sequence[str]) -> list[str]:
    """The overrides of this command line that `words` does not replace and that are not the sweep's own."""
    replaced = {each.partition("=")[0] for each in words}
    names = [(each.partition("=")[0], each) for each in recipe.overrides]
    return [each for name, each in names if name not in replaced and name.partition(".")[0] != "sweep"]


def _comparisons(order: Sequence[Row], metric: Metric) -> list[Json]:
    """The best against the recipe as it stands and against the runner-up.

    Intervals of two trials that overlap decide nothing. On the same rows a paired comparison would see more, but
    training keeps no answers; the stage `evaluate` makes one, on rows that no trial was chosen by.
    """
    if not order:
        return []
    best, others = order[0], list(order[1:])
    rivals = [("the recipe as it stands", each) for each in others if each.default]
    rivals += [("the runner-up", others[0])] if others and not others[0].default else []
    return [_compared(best, name, rival, metric) for name, rival in rivals]


def _compared(best: Row, name: str, rival: Row, metric: Metric) -> Json:
    apart = best.low is not None and rival.high is not None and best.low > rival.high
    if best.low is None or rival.high is None:
        why = "nothing here has an interval to compare by: another seed may turn it round"
    elif apart:
        why = f"the intervals of the {SCORE}s do not meet"
    else:
        why = f"the intervals of the {SCORE}s overlap, on the same {best.rows} rows"
    return {"best": best.number, "rival": rival.number, "what": name, "undecided": not apart, "why": why}


def as_lines(found: Json) -> str:
    """The report for a terminal."""
    rows = [Row(**each) for each in found["trials"]]
    lines = [*_table(rows, found), ""]
    if found["best"] is None:
        return "\n".join([*lines, "no trial ended with an adapter: see the reasons above"])
    best = rows[found["best"]]
    lines.append(f"best by {found['metric']}: trial {best.number}" + (", the recipe as it stands" * best.default))
    for each in found["comparisons"]:
        word = "UNDECIDED" if each["undecided"] else "better"
        lines.append(f"against {each['what']} (trial {each['rival']}): {word}, {each['why']}")
    tried = sum(row.state == "done" for row in rows)
    lines.append(
        f"chosen as the best of {tried} on the rows it is scored on: expect less elsewhere; "
        "`potstill evaluate` judges on the test split, which no trial has seen"
    )
    if found["importances"]:
        shares = ", ".join(f"{key.removeprefix('train.')} {share:.0%}" for key, share in found["importances"].items())
        lines.append(f"what moved the {found['metric']} (PED-ANOVA, rough for so few trials): {shares}")
    lines.append(("use it: " if found["overrides"] else "nothing to change: ") + found["command"])
    return "\n".join(lines)


def _table(rows: Sequence[Row], found: Json) -> list[str]:
    keys = list(found["keys"])
    cells = [["trial", *(key.removeprefix("train.") for key in keys), "score", "loss", "tokens/s", "min", ""]]
    for row in rows:
        note = "best" if row.number == found["best"] else ""
        note = note if row.state == "done" else f"{row.state}: {row.reason}" if row.reason else row.state
        note += (", " if note and row.default else "") + ("recipe" if row.default else "")
        cells.append(
            [
                str(row.number),
                *(as_text(row.values[key]) for key in keys),
                row.shown_score(),
                _number(row.loss, ".4f"),
                _number(row.tokens_per_second, ",.0f"),
                _number(row.minutes, ".1f"),
                note,
            ]
        )
    widths = [max(len(each[at]) for each in cells) for at in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)).rstrip() for each in cells]


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)
