"""The arguments of `potstill keys`; what they do is in `keys.py`, which costs time to import."""

from __future__ import annotations

import argparse
import math
from typing import Any


def key_commands(commands: Any) -> None:
    """Add `keys` with its four commands."""
    keys: argparse.ArgumentParser = commands.add_parser("keys", help="keys of a server: add, list, revoke, rotate")
    under = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = _command(under, "add", "make a key; it is shown once", "add", names=True)
    made.add_argument("--tenant", help="whose data its calls are (default: the key's name)")
    made.add_argument(
        "--scopes", default="chat,feedback", help="of chat,feedback,batch,metrics,admin (default: chat,feedback)"
    )
    made.add_argument("--expires", metavar="TIME", help="from now, as 90d or 12h (default: never)")
    made.add_argument("--rpm", type=_count, metavar="N", help="requests a minute (default: serve.limits)")
    made.add_argument("--tpm", type=_count, metavar="N", help="tokens a minute (default: serve.limits)")
    made.add_argument("--concurrent", type=_count, metavar="N", help="requests at once (default: serve.limits)")
    made.add_argument("--daily-usd", type=_amount, metavar="USD", help="budget a day, UTC (default: serve.budgets)")
    made.add_argument("--total-usd", type=_amount, metavar="USD", help="budget in all (default: serve.budgets)")
    _command(under, "list", "all keys and what they may do", "list_keys")
    _command(under, "revoke", "end every key of a name, now", "revoke", names=True)
    turned = _command(under, "rotate", "a new key; the old one ends after a time of grace", "rotate", names=True)
    turned.add_argument("--grace", default="24h", metavar="TIME", help="the old key stays good (default: 24h)")


def _command(commands: Any, name: str, what: str, function: str, names: bool = False) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
    if names:
        command.add_argument("name", help="of the key")
    command.add_argument("--recipe", help="the serve section (and work folder) of this recipe")
    command.add_argument("--json", action="store_true", help="result as one JSON object on standard output")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of serve, such as state.dir=/var/lib/x"
    )
    command.set_defaults(where=f"keys:{function}")
    return command


def _count(word: str) -> int:
    if not word.isdigit() or not 1 <= int(word) <= 10**12:
        raise argparse.ArgumentTypeError(f"found {word!r}, expected a whole number of at least 1")
    return int(word)


def _amount(word: str) -> float:
    try:
        found = float(word)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1_000_000:
        raise argparse.ArgumentTypeError(f"found {word!r}, expected US dollars between 0 and 1,000,000")
    return found
