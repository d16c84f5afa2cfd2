"""Looks versions up in MLflow, in a process of its own: `python -m potstill.serving.registry_child ... ADDRESS ...`.

MLflow takes seconds and hundreds of megabytes to import, and its stores block; nothing of that belongs into a process
that answers requests. One JSON line an event goes to standard output: a version found, or a fault. With `--every-s`
it looks again and again, and at once for every line on its standard input, until that closes.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from potstill.errors import PotstillError, RecipeError
from potstill.records import Json

Emit = Callable[[Json], None]


class Lookups:
    """What each address named when it was last looked up."""

    def __init__(self, tracking: Any, emit: Emit) -> None:
        self._tracking, self._emit = tracking, emit
        self._known: dict[str, str] = {}
        self._faults: dict[str, str] = {}

    def look(self, address: str) -> int:
        """Tell of the version where it is another than before; 0, or the exit code of the fault that was met."""
        try:
            self._look(address)
            self._faults.pop(address, None)
            return 0
        except Exception as fault:  # whatever a store or a network raises: the next look may fare better
            text = str(fault) if isinstance(fault, PotstillError) else f"{type(fault).__name__}: {fault}"
            if self._faults.get(address) != text:
                self._emit({"address": address, "fault": text, "kind": type(fault).__name__})
            self._faults[address] = text
            if isinstance(fault, RecipeError):
                self._known.pop(address, None)  # it names nothing now, so that its next version is news
            return fault.exit_code if isinstance(fault, PotstillError) else 1

    def _look(self, address: str) -> None:
        from potstill.tracking_forgotten import heed_version
        from potstill.tracking_versions import find_version, resolve_model_uri

        number = find_version(self._tracking, address).version
        if self._known.get(address) == number:
            return
        heed_version(self._tracking, address, f"serve: {address}")
        found = resolve_model_uri(self._tracking, address)
        shipped = str(found.version.tags.get("shipped") or "")
        self._known[address] = found.version.version
        self._emit(
            {
                "address": address,
                "model": found.version.model,
                "version": found.version.version,
                "artifact": str(found.artifact),
                "digest": found.digest,
                "format": shipped.removeprefix("artifact:") if shipped.startswith("artifact:") else None,
            }
        )


def main(argv: Sequence[str] | None = None) -> int:
    """0, or the exit code of the first fault where it was asked to look once."""
    parser = argparse.ArgumentParser(prog="potstill.serving.registry_child", description=__doc__)
    parser.add_argument("--tracking-uri", help="MLflow address; unset: that of the work folder")
    parser.add_argument("--work", default="work")
    parser.add_argument("--every-s", type=float, default=0, help="0: look once")
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("addresses", nargs="+")
    options = parser.parse_args(argv)
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what MLflow prints is no event

    def emit(event: Json) -> None:
        told.write(json.dumps(event) + "\n")

    try:
        from potstill.tracking import default_uri, open_tracking

        tracking = open_tracking(options.tracking_uri or default_uri(Path(options.work).resolve()))
    except PotstillError as fault:
        emit({"address": options.addresses[0], "fault": str(fault), "kind": type(fault).__name__})
        return fault.exit_code
    lookups = Lookups(tracking, emit)
    while True:
        codes = [lookups.look(each) for each in options.addresses]
        if not options.every_s:
            return next((code for code in codes if code), 0)
        if _told_to_end(options.every_s, options.parent):
            return 0


def _told_to_end(within_s: float, parent: int) -> bool:
    """Wait for the next look; True when whoever started us is gone."""
    end = monotonic() + within_s
    while (left := end - monotonic()) > 0:
        ready, _, _ = select.select([0], [], [], min(left, 1.0))
        if ready:
            return not os.read(0, 4096)
        if os.getppid() != parent:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
