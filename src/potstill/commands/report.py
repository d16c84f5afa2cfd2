"""`potstill report`: a finished report written again as a page, Markdown or JSON, without asking any model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from potstill.manifest import MANIFEST, write_atomically
from potstill.pipeline import newest
from potstill.stage_finder import stage_module


def report(arguments: argparse.Namespace) -> int:
    """Write it to standard output, or to the file that --out names and print its path."""
    folder = Path(arguments.folder)
    if not (folder / MANIFEST).is_file():  # the working folder of a recipe
        folder = newest(folder, "report")
    text: str = stage_module("evaluate").written_again(folder, arguments.format)
    if arguments.out is None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return 0
    out = Path(arguments.out)
    write_atomically(out, text.encode("utf-8"))
    print(json.dumps({"path": str(out), "report": str(folder)}) if arguments.json else out)
    return 0
