"""`potstill lineage`: the way back to the traffic log, and forward to what was made, as text, JSON or a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from potstill.errors import RecipeError


def lineage_command(arguments: argparse.Namespace) -> int:
    """Print the tree of a thing; with --picture draw it too."""
    from potstill.lineage import lineage

    work = Path(arguments.work_dir).resolve()
    out = Path(arguments.picture) if arguments.picture else None
    if out is not None and (out.suffix not in (".svg", ".html") or not out.resolve().parent.is_dir()):
        raise RecipeError([f"--picture {out}: expected FILE.svg or FILE.html in a folder that exists"])
    uri = arguments.tracking_uri
    if uri is None and arguments.thing.startswith("models:/"):
        from potstill.tracking import default_uri

        uri = default_uri(work)
    node = lineage(arguments.thing, work, uri)
    if out is not None:
        from potstill.lineage.picture import draw
        from potstill.manifest import write_atomically

        write_atomically(out, draw(node, page=out.suffix == ".html").encode())
    print(json.dumps(node.to_json()) if arguments.json else node.to_text())
    return 0
