"""`potstill promote` and `potstill rollback`."""

from __future__ import annotations

import argparse
import getpass
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.tracking import default_uri, open_tracking
from potstill.tracking_forgotten import heed_version
from potstill.tracking_versions import promote, rollback

if TYPE_CHECKING:
    from potstill.tracking import Tracking
    from potstill.tracking_versions import Move


def promote_command(arguments: argparse.Namespace) -> int:
    """Move `champion` to a version (default: `candidate`); refused when its gate did not pass."""
    name, _, version = arguments.model.removeprefix("models:/").partition("/")
    uri = f"models:/{name}/{version}" if version else f"models:/{name}@candidate"
    heed_version(_tracking(arguments), uri, f"promote: {uri}")
    return _done(arguments, promote(_tracking(arguments), name, version or None, by=_by(arguments), why=arguments.why))


def rollback_command(arguments: argparse.Namespace) -> int:
    """Move `champion` back to the version before."""
    name = arguments.model.removeprefix("models:/").partition("/")[0]
    return _done(arguments, rollback(_tracking(arguments), name, by=_by(arguments), why=arguments.why))


def _tracking(arguments: argparse.Namespace) -> Tracking:
    return open_tracking(arguments.tracking_uri or default_uri(Path("work").resolve()))


def _by(arguments: argparse.Namespace) -> str:
    return str(arguments.by or getpass.getuser())


def _done(arguments: argparse.Namespace, move: Move) -> int:
    print(json.dumps(asdict(move)) if arguments.json else " ".join(f"{k}={v}" for k, v in asdict(move).items()))
    return 0
