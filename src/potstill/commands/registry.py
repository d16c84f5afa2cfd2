"""`potstill promote`, `potstill rollback` and `potstill history`."""

from __future__ import annotations

import argparse
import getpass
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.tracking import default_uri, open_tracking
from potstill.tracking_forgotten import heed_version
from potstill.tracking_moves import history, promote, rollback

if TYPE_CHECKING:
    from potstill.tracking import Tracking
    from potstill.tracking_moves import Move


def promote_command(arguments: argparse.Namespace) -> int:
    """Move `champion` to a version (default: `candidate`); refused when its gate did not pass."""
    name, _, version = arguments.model.removeprefix("models:/").partition("/")
    found = _tracking(arguments)
    uri = f"models:/{name}/{version}" if version else f"models:/{name}@candidate"
    heed_version(found, uri, f"promote: {uri}")
    move = promote(found, name, version or None, by=who(arguments), why=arguments.why, expect=arguments.expect)
    return _done(arguments, move)


def rollback_command(arguments: argparse.Namespace) -> int:
    """Move `champion` back to the version before."""
    move = rollback(
        _tracking(arguments), _name(arguments), by=who(arguments), why=arguments.why, expect=arguments.expect
    )
    return _done(arguments, move)


def history_command(arguments: argparse.Namespace) -> int:
    """Every change of `champion`, oldest first."""
    moves = history(_tracking(arguments), _name(arguments), refused=arguments.refused)
    if arguments.json:
        print(json.dumps([asdict(each) for each in moves], ensure_ascii=False))
        return 0
    for each in moves:
        print(line_of(each))
    if not moves:
        print(f"{_name(arguments)}: nobody has moved champion yet")
    return 0


def line_of(move: Move) -> str:
    """`2026-11-21 23:10:07  promote   3 -> 4  ann: why`, with what was out of the ordinary behind it."""
    way = f"{move.before or 'none'} -> {move.version or 'none'}"
    if move.action == "prune":
        way = f"files of {', '.join(move.pruned)} given up"
    odd = "" if move.accepted else "  (refused: somebody else was first)"
    odd += f"  (the alias had been moved to {move.found} outside Potstill)" if move.found else ""
    when = move.at.partition(".")[0].replace("T", " ")
    return f"{move.entry:>4}  {when}  {move.action:<8}  {way}  {move.by}: {' '.join(move.why.split())}{odd}"


def who(arguments: argparse.Namespace) -> str:
    """Who acts: `--by`, else the user that MLflow's server knows, else that of this machine."""
    return str(arguments.by or os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser())


def _name(arguments: argparse.Namespace) -> str:
    return str(arguments.model).removeprefix("models:/").partition("/")[0].partition("@")[0]


def _tracking(arguments: argparse.Namespace) -> Tracking:
    return open_tracking(arguments.tracking_uri or default_uri(Path("work").resolve()))


def _done(arguments: argparse.Namespace, move: Move) -> int:
    print(json.dumps(asdict(move), ensure_ascii=False) if arguments.json else line_of(move))
    return 0
