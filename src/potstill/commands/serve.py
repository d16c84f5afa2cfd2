"""`potstill serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import ValidationError

from potstill.commands.recipes import read
from potstill.errors import RecipeError
from potstill.serving.settings import ServeSettings
from potstill.yaml_positions import Positioned, apply_overrides


def serve_command(arguments: argparse.Namespace) -> int:
    """Serve an artifact folder, or the artifact of a registered version."""
    settings, work, uri, name = _settings(arguments)
    artifact = Path(arguments.artifact)
    if arguments.artifact.startswith("models:/"):
        from potstill.tracking import default_uri, open_tracking
        from potstill.tracking_versions import resolve_model_uri

        found = resolve_model_uri(open_tracking(uri or default_uri(work)), arguments.artifact)
        artifact = found.artifact
        name = f"{found.version.model}@{found.version.version}"
        shipped = str(found.version.tags.get("shipped") or "")
        if settings.format is None and shipped.startswith("artifact:"):
            settings = settings.model_copy(update={"format": shipped.removeprefix("artifact:")})
    from potstill.serving.run import serve

    serve(artifact, settings, name, work / "captured" / (name.partition("@")[0] or "unnamed"))
    return 0


def _settings(arguments: argparse.Namespace) -> tuple[ServeSettings, Path, str | None, str]:
    if arguments.recipe:
        overrides = [f"serve.{each}" for each in arguments.overrides]
        recipe, _ = read(arguments.recipe, overrides)
        settings = recipe.sections["serve"]
        assert isinstance(settings, ServeSettings)
        uri = arguments.tracking_uri or recipe.shared.tracking_uri
        return settings, recipe.shared.work_dir.parent, uri, recipe.shared.name
    return settings_from(arguments.overrides), Path("work").resolve(), arguments.tracking_uri, ""


def settings_from(overrides: list[str]) -> ServeSettings:
    """The serve section from `key=value` words alone; raises RecipeError with every fault."""
    document = Positioned({})
    _, faults = apply_overrides(document, overrides)
    try:
        settings = ServeSettings.model_validate(document.data)
    except ValidationError as fault:
        for each in fault.errors():
            faults.append(f"command line: {'.'.join(map(str, each['loc']))}: {each['msg']}")
    if faults:
        raise RecipeError(faults)
    return settings
