"""`potstill look`: a dataset folder as a page to browse."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from potstill.errors import RecipeError
from potstill.manifest import MANIFEST, read_manifest, write_atomically
from potstill.pipeline import newest


def look(arguments: argparse.Namespace) -> int:
    """Write the page, open it where there is a display, print its path."""
    from potstill.looking.contents import contents
    from potstill.looking.page import render

    if arguments.rows < 1:
        raise RecipeError([f"--rows {arguments.rows}: expected at least 1"])
    folder = dataset_folder(arguments.dataset, arguments.overrides)
    # The files are not hashed again: that would read the sealed split.
    manifest = read_manifest(folder, "dataset", verify=False)
    out = Path(arguments.out) if arguments.out else folder.parent / f"look-{folder.name}.html"
    _check_place(out)
    found = contents(folder, manifest, arguments.rows)
    name = str(manifest.settings_used.get("name", folder.name))
    page = render(f"{name}: {folder.name}", found | {"name": name, "folder": folder.name}).encode("utf-8")
    write_atomically(out, page)
    if arguments.json:
        totals = {tab: found[tab]["total"] for tab in TABS}
        shown = {"kept": len(found["kept"]["ids"]), "rejected": len(found["rejected"]["numbers"])}
        shown |= {tab: len(found[tab]["list"]) for tab in TABS if tab not in shown}
        print(json.dumps({"path": str(out), "size_bytes": len(page), "dataset": str(folder), "rows": totals,
                          "shown": shown, "sealed": manifest.facts.get("rows", {}).get("test")}))  # fmt: skip
        return 0
    print(out)
    if not arguments.no_open and has_display():
        import webbrowser

        webbrowser.open(out.resolve().as_uri())
    return 0


TABS = ("kept", "rejected", "clusters", "suspects", "preferences", "opinions")


def dataset_folder(named: str, overrides: list[str]) -> Path:
    """The folder itself, or the newest dataset of a recipe or of a working folder.

    Raises ManifestMismatch when there is no finished dataset, RecipeError when the recipe is wrong.
    """
    path = Path(named)
    if path.is_dir():
        if overrides:
            raise RecipeError([f"{' '.join(overrides)}: settings change a recipe, and {named} is a folder"])
        return path if (path / MANIFEST).is_file() or not any(path.glob(f"dataset-*/{MANIFEST}")) else newest(
            path, "dataset"
        )  # fmt: skip
    from potstill.commands.recipes import read

    recipe, _ = read(named, overrides)
    return newest(recipe.shared.work_dir, "dataset")


def _check_place(out: Path) -> None:
    """Refuse a place in a finished folder, whose files are hashed, and one that does not exist."""
    place = out.resolve().parent
    if not place.is_dir():
        raise RecipeError([f"--out {out}: {place} is no folder; make it, or name another place"])
    if finished := next((each for each in (place, *place.parents) if (each / MANIFEST).is_file()), None):
        raise RecipeError([f"--out {out}: {finished} is finished, its files are hashed; name a place outside it"])


def has_display() -> bool:
    """Whether a browser would have a screen to open on."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
