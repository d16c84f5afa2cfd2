"""`potstill serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from potstill.commands.recipes import read, refuse_at_odds
from potstill.errors import RecipeError
from potstill.recipe import settings_of
from potstill.safe_names import safe_name
from potstill.serving.at_odds import faults_of
from potstill.serving.engine_settings import FollowSettings
from potstill.serving.settings import ServeSettings


def serve_command(arguments: argparse.Namespace) -> int:
    """Serve an artifact folder, the artifact of a registered version, or several models; read again on SIGHUP."""
    if arguments.artifact and "=" in arguments.artifact and not Path(arguments.artifact).exists():
        arguments.overrides, arguments.artifact = [arguments.artifact, *arguments.overrides], None
    from potstill.serving.registry import Registry
    from potstill.serving.run import serve

    settings, work, uri, name = _settings(arguments)
    registry = Registry(uri, work)
    model = _model_of(arguments.artifact or "") or name
    serve(
        arguments.artifact, settings, name, capture_folder(work, model),
        registry=registry, read=lambda: _settings(arguments)[0],
    )  # fmt: skip
    return 0


def _model_of(address: str) -> str:
    """The registered model that `models:/NAME@ALIAS` means, "" for a folder."""
    model = address.removeprefix("models:/")
    return model.partition("@")[0].partition("/")[0] if model != address else ""


def capture_folder(work: Path, name: str) -> Path:
    """Where a served model's exchanges go unless the settings say; `name` is a recipe's or MODEL@VERSION."""
    return work / "captured" / safe_name(name.rpartition("@")[0] or name or "unnamed", "model name")


def _settings(arguments: argparse.Namespace) -> tuple[ServeSettings, Path, str | None, str]:
    """The serve section as it stands written now, the work folder, MLflow's address and the recipe's name."""
    settings, work, uri, name = _written(arguments)
    if arguments.follow and settings.follow is None:
        settings = settings.model_copy(update={"follow": FollowSettings()})
    return settings, work, uri, name


def _written(arguments: argparse.Namespace) -> tuple[ServeSettings, Path, str | None, str]:
    if arguments.recipe:
        overrides = [f"serve.{each}" for each in arguments.overrides]
        recipe, _ = read(arguments.recipe, overrides)
        refuse_at_odds(recipe)
        settings = recipe.sections["serve"]
        assert isinstance(settings, ServeSettings)
        uri = arguments.tracking_uri or recipe.shared.tracking_uri
        return settings, recipe.shared.work_dir.parent, uri, recipe.shared.name
    return settings_from(arguments.overrides), Path("work").resolve(), arguments.tracking_uri, ""


def settings_from(overrides: list[str]) -> ServeSettings:
    """The serve section from `key=value` words alone; raises RecipeError with every fault."""
    settings = settings_of(overrides, ServeSettings)
    if found := faults_of(settings):
        raise RecipeError([f"command line: {'.'.join(at)}: {wrong}" for at, wrong in found])
    return settings
