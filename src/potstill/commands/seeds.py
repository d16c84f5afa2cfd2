"""`potstill seeds`: reports of trainings that differ in their seed, combined."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def seeds(arguments: argparse.Namespace) -> int:
    """Print the mean over seeds with its interval over rows and seeds."""
    from potstill.seeds import as_text, seeds_of

    found = seeds_of([Path(each) for each in arguments.reports])
    print(json.dumps(found) if arguments.json else as_text(found))
    return 0
