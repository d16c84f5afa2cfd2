"""`potstill compare-bases`: several base models trained on the same slice, side by side, to choose a student."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence

from potstill.commands.recipes import read
from potstill.errors import RecipeError
from potstill.progress import say

_OVERRIDE = re.compile(r"[a-z_]+(\.\w+)*=")


def compare_bases(arguments: argparse.Namespace) -> int:
    """Train, ask and compare. Exit code 1 when no base has a result; a base that fails is a row, not the end."""
    from potstill.comparing.run import PAGE, compare
    from potstill.comparing.slices import SlicePlan
    from potstill.comparing.table import text_of

    bases, more = divide(arguments.bases)
    for name, value in (("--rows", arguments.rows), ("--judged-rows", arguments.judged_rows)):
        if value < 1:
            raise RecipeError([f"{name}: found {value}, expected 1 or more"])
    if not bases:
        raise RecipeError(
            ["--bases: found no base, expected one or more (a folder, a .gguf file, package:... or a hub id)"]
        )
    recipe, modules = read(arguments.recipe, [*arguments.overrides, *more])
    plan = SlicePlan(arguments.rows, arguments.judged_rows)
    report = compare(recipe, modules, bases, plan, track=not arguments.no_track)
    print(json.dumps(report) if arguments.json else text_of(report))
    say(f"page: {report['folder']}/{PAGE}")
    return 1 if all(row["status"] == "failed" for row in report["bases"]) else 0


def divide(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Specs, and the `key=value` words that stood behind them (an option that takes a list takes these too)."""
    overrides = [word for word in words if _OVERRIDE.match(word)]
    return [word for word in words if word not in overrides], overrides
