"""`potstill watch`, the unattended loop of a recipe; `potstill drift`, captured traffic against the profile."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from potstill.commands.recipes import read
from potstill.errors import RecipeError
from potstill.pipeline import locked, newest
from potstill.recipe import Recipe
from potstill.watching.settings import MonitorSettings, WatchSettings


def watch_command(arguments: argparse.Namespace) -> int:
    """Look, train, try and promote for as long as it runs; with `--once` until nothing more can be done now."""
    from potstill.sweeping.processes import ended_by_sigterm
    from potstill.watching.loop import Place, Watcher
    from potstill.watching.rollout import RegistryRollout
    from potstill.watching.training import RunTraining
    from potstill.watching.webhooks import check_secrets

    recipe, _ = read(arguments.recipe, arguments.overrides)
    settings = settings_of(recipe)
    check_secrets(settings.webhooks)
    folder = recipe.shared.work_dir / "watch"
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, captured_of(recipe, settings), lambda: training_rows(recipe.shared.work_dir))
    rollout = RegistryRollout(recipe.shared.tracking_uri, model_of(recipe))
    with locked(folder), ended_by_sigterm():
        watcher = Watcher(recipe.shared.task(), settings, place, rollout, RunTraining(recipe))
        while True:
            last = watcher.run_once()
            if arguments.once:
                break
            time.sleep(settings.every_s)
    if arguments.json:
        print(json.dumps(asdict(last) if last else None, ensure_ascii=False))
    elif last is not None:
        print(f"{last.at}  {last.kind}: {last.reason}  (journal: {watcher.journal.path})")
    return 0


def drift_command(arguments: argparse.Namespace) -> int:
    """The figures of captured traffic against an artifact's profile; 0 whatever they say."""
    from potstill.watching.offline import captured_exchanges, figures, lines_of, watched

    artifact, settings = _artifact(arguments.artifact)
    if arguments.alpha is not None:
        settings = MonitorSettings.model_validate({**settings.model_dump(), "alpha": arguments.alpha})
    exchanges = captured_exchanges(Path(arguments.captured), arguments.since, arguments.until)
    found = figures(watched(artifact), exchanges, settings)
    print(json.dumps(found, ensure_ascii=False) if arguments.json else "\n".join(lines_of(found)))
    return 0


def _artifact(word: str) -> tuple[Path, MonitorSettings]:
    """An artifact folder as it is; a recipe's newest artifact, with its `watch.drift`."""
    if not word.endswith((".yaml", ".yml")):
        return Path(word), MonitorSettings()
    recipe, _ = read(word, [])
    return newest(recipe.shared.work_dir, "artifact"), settings_of(recipe).drift


def settings_of(recipe: Recipe) -> WatchSettings:
    found = recipe.sections["watch"]
    assert isinstance(found, WatchSettings)
    return found


def model_of(recipe: Recipe) -> str:
    """The registered model of the recipe's `register` section."""
    model = getattr(recipe.sections["register"], "model", None)
    if not model:
        raise RecipeError([f"{recipe.path}: no register.model, expected the registered model to watch"])
    return str(model)


def captured_of(recipe: Recipe, settings: WatchSettings) -> Path:
    """Where the recipe's server captures, unless the watch section says."""
    from potstill.commands.serve import capture_folder
    from potstill.serving.settings import ServeSettings

    if settings.captured is not None:
        return Path(settings.captured)
    serve = recipe.sections["serve"]
    assert isinstance(serve, ServeSettings)
    if serve.capture is not None and serve.capture.dir:
        return Path(serve.capture.dir)
    return capture_folder(recipe.shared.work_dir.parent, model_of(recipe))


def training_rows(work_dir: Path) -> list[tuple[str, str]]:
    """(newest user text, answer) of the newest dataset's training rows: what corrections are held against."""
    from potstill.dataset import read_examples

    found = []
    for each in read_examples(newest(work_dir, "dataset"), "train"):
        text = next((str(m.get("content") or "") for m in reversed(each.messages) if m.get("role") == "user"), "")
        found.append((text, each.answer))
    return found
