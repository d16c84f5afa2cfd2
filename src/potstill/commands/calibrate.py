"""`potstill calibrate`: how sure the exported student must be to keep an answer, from the validation rows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from potstill.commands.recipes import read
from potstill.errors import RecipeError
from potstill.pipeline import newest
from potstill.records import Json
from potstill.serving.settings import ServeSettings


def calibrate_command(arguments: argparse.Namespace) -> int:
    """Make the folder `calibration-KEY` beside the artifact's; 0 when it stands."""
    from potstill.calibration.conformal import Bound
    from potstill.calibration.make import Wanted, calibrate
    from potstill.manifest import read_manifest

    recipe, _ = read(arguments.recipe, arguments.overrides)
    serve = recipe.sections["serve"]
    assert isinstance(serve, ServeSettings)
    if arguments.rows is not None and arguments.rows < 1:
        raise RecipeError([f"--rows {arguments.rows}: expected at least 1"])
    artifact = Path(arguments.artifact) if arguments.artifact else newest(recipe.shared.work_dir, "artifact")
    wanted = Wanted(
        Bound(arguments.alpha, arguments.delta, arguments.of), arguments.against, arguments.score, arguments.learned,
        arguments.rows, serve.format, serve.constrain,
    )  # fmt: skip
    gold = getattr(recipe.sections["evaluate"], "gold", None)
    out = artifact.parent if arguments.artifact else recipe.shared.work_dir
    folder = calibrate(
        wanted, artifact, out, gold=Path(gold) if gold else None, threads=serve.threads, slots=serve.slots
    )
    facts = read_manifest(folder, "calibration").facts
    print(json.dumps(facts | {"folder": str(folder)}) if arguments.json else as_lines(folder, facts))
    return 0


def as_lines(folder: Path, facts: Json) -> str:
    """The folder and what it promises, for a terminal."""
    kept, learned = facts["kept"], facts.get("learned")
    lines = [
        f"{facts['rows']:,} validation rows, {facts['without_valid_answer']:,} of them without a valid answer",
        f"threshold: {facts['threshold']} ({facts['score']} score); the student keeps {kept['share']:.1%} of these "
        f"rows, wrong {kept['of_all']:.1%} of all, {kept['of_kept']:.1%} of the kept ones",
        f"promise: {facts['promise']}",
    ]
    if learned:
        kept = learned["kept"]
        lines.append(
            f"learned router: asks the student for {kept['share']:.1%} of {learned['rows']:,} "
            f"rows, wrong {kept['of_all']:.1%} of all"
        )
    return "\n".join([*lines, str(folder)])
