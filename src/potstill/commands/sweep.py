"""`potstill sweep`: the trials of a recipe's `sweep` section, one after the other, and the table of what they gave."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.commands.recipes import read, sections
from potstill.errors import PotstillError, RecipeError
from potstill.manifest import Manifest, read_manifest, sha256_json, write_atomically
from potstill.pipeline import locked, plan_stage
from potstill.progress import say
from potstill.recipe import Recipe
from potstill.records import Json
from potstill.sweeping.rows import Row
from potstill.sweeping.settings import SweepSettings
from potstill.sweeping.spaces import current_values, refuse_faulty, settings_of

KEY_DIGITS = 10
EXAMPLE = "sweep: {keys: {train.learning_rate: {log: [1.0e-4, 1.0e-3]}, train.lora.rank: {choice: [8, 16, 32]}}}"
Record = Callable[[Row], None]


def sweep(arguments: argparse.Namespace) -> int:
    """Run what is missing of the sweep; 0 when it is whole, whatever it found."""
    extra = [] if arguments.trials is None else [f"sweep.trials={arguments.trials}"]
    recipe, modules = read(arguments.recipe, [*arguments.overrides, *extra])
    settings = settings_of(recipe)
    if not settings.keys:
        raise RecipeError([f"{recipe.path}: no sweep.keys, expected at least one, such as `{EXAMPLE}`"])
    refuse_faulty(recipe, sections(modules))
    if importlib.util.find_spec("optuna") is None:
        raise PotstillError("potstill sweep needs optuna: pip install 'potstill[sweep]'")
    from potstill.sweeping.processes import ended_by_sigterm

    with ended_by_sigterm():
        found = _search(recipe, modules, settings, track=not arguments.no_track)
    from potstill.sweeping.report import as_lines

    print(json.dumps(found) if arguments.json else as_lines(found))
    return 0


def _search(recipe: Recipe, modules: dict[str, Any], settings: SweepSettings, *, track: bool) -> Json:
    from potstill.sweeping.search import search
    from potstill.sweeping.study import Study
    from potstill.sweeping.trials import Trials

    dataset = _dataset(recipe, modules, track=track)
    trials = Trials(recipe, sections(modules), modules["train"], dataset, _validation_rows(recipe, dataset))
    key = _key(trials.plan(recipe).key, settings)
    folder = recipe.shared.work_dir / "sweeps" / key
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), _tracked(recipe, key, folder, on=track) as record:
        study = Study(folder, f"{recipe.shared.name}-{key}", settings.keys, settings.metric)
        say(f"sweep {key}: {settings.trials} trials -> {folder}")

        def ended(row: Row) -> None:
            _write(recipe, key, folder, study.rows())
            record(row)

        current = current_values(recipe, settings.keys)
        rows = search(study, current, settings.trials, settings.seed, trials, ended)
        found = _write(recipe, key, folder, rows)
        for row in rows:  # a kill may have come between a trial's end and its record
            record(row)
    return found | {"folder": str(folder)}


def _key(train_key: str, settings: SweepSettings) -> str:
    """What makes two sweeps the same one: all that a training depends on, and the search; not how many trials."""
    searched = settings.model_dump(mode="json", exclude={"trials"})
    return sha256_json({"train": train_key, "sweep": searched})[:KEY_DIGITS]


def _dataset(recipe: Recipe, modules: dict[str, Any], *, track: bool) -> Manifest:
    """The dataset that every trial reads, distilled first where it is not up to date."""
    from potstill.sweeping.processes import run_stage, wait_until_free

    plan = plan_stage(recipe, "distill", modules["distill"], {})
    if not plan.done:
        wait_until_free(recipe.shared.work_dir)
        words = ["distill", str(recipe.path), *recipe.overrides, *([] if track else ["--no-track"])]
        ended = run_stage(words)
        if ended.code != 0:
            fault = PotstillError(f"distill: {ended.told.get('message', f'ended with code {ended.code}')}")
            fault.exit_code = ended.code
            raise fault
    return read_manifest(plan.folder, "dataset")


def _validation_rows(recipe: Recipe, dataset: Manifest) -> int:
    """How many validation rows there are to compare on; raises PotstillError for none."""
    import pyarrow.parquet as pq

    folder = recipe.shared.work_dir / f"dataset-{dataset.key}"
    rows = int(pq.read_metadata(folder / "validation.parquet").num_rows)
    if rows == 0:
        raise PotstillError(f"{folder}: no validation rows, so that trials cannot be compared; raise distill.split")
    return rows


def _write(recipe: Recipe, key: str, folder: Path, rows: Sequence[Row]) -> Json:
    """`sweep.json` and `sweep.html`, after every trial."""
    from potstill.sweeping.page import page
    from potstill.sweeping.report import report

    found = report(recipe, key, rows)
    write_atomically(folder / "sweep.json", (json.dumps(found, indent=1) + "\n").encode())
    write_atomically(folder / "sweep.html", page(found).encode())
    return found


@contextmanager
def _tracked(recipe: Recipe, key: str, folder: Path, *, on: bool) -> Iterator[Record]:
    """Records each ended trial in MLflow under the sweep's run, and what was found once the block ends well."""
    if not on:
        yield lambda row: None
        return
    from dataclasses import asdict

    from potstill.tracking import open_tracking
    from potstill.tracking_sweeps import record_sweep, record_trial, sweep_run

    settings = settings_of(recipe)
    spaces = {name: space.model_dump_json(exclude_none=True) for name, space in settings.keys.items()}
    params = spaces | {"metric": settings.metric, "seed": str(settings.seed), "prune": str(settings.prune)}
    tracking, name = open_tracking(recipe.shared.tracking_uri), recipe.shared.name
    with sweep_run(tracking, name, key, params) as run_id:

        def record(row: Row) -> None:
            record_trial(tracking, name, run_id, key, asdict(row), recipe.shared.work_dir)

        yield record
        record_sweep(tracking, run_id, json.loads((folder / "sweep.json").read_text()), folder)
