"""Many people at one registry: processes that promote at the same moment, some of them killed on the way.

Arguments: one JSON object with `uri`, `model`, `versions`, `racers`, `rounds`, `seed`, and `killed`, the share of
racers that SIGKILL meets at a random moment of their move. Every round all racers have seen the same champion, are
let go together and promote different versions. Prints a JSON list: for each round the champion seen, each racer's
outcome (`won`, `refused`, `failed`, or `killed` when it died before it could say), and the champion afterwards, as a
new process reads it.

Racers are forked from this process, which has MLflow imported but has opened no database.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from typing import Any

import mlflow
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store

from potstill.errors import PotstillError
from potstill.manifest import code_state
from potstill.tracking import open_tracking
from potstill.tracking_moves import promote
from potstill.tracking_versions import aliases

IMPORTED_ONCE = (mlflow.MlflowClient, mlflow.store)
FIRST_MOVE_S = 0.6  # kills fall anywhere in a move: as long as the slowest survivor of the last round took
Json = dict[str, Any]


class Racer:
    """A forked process that opens the registry, says so, waits to be let go, and promotes one version."""

    def __init__(self, job: Json, version: str, seen: str, name: str) -> None:
        self.version, self.name = version, name
        ready_in, ready_out = os.pipe()
        go_in, go_out = os.pipe()
        self.told, told_out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(go_out)  # else its own copy keeps the pipe open
            _race(job, version, seen, name, (ready_out, go_in, told_out))
        for mine in (ready_out, go_in, told_out):
            os.close(mine)
        self._ready, self._go = ready_in, go_out

    def wait_until_ready(self) -> None:
        os.read(self._ready, 1)
        os.close(self._ready)

    def go(self) -> None:
        os.write(self._go, b"!")
        os.close(self._go)

    def outcome(self) -> Json:
        """What it said; `killed` when it said nothing whole."""
        with os.fdopen(self.told) as stream:
            said = stream.read()
        os.waitpid(self.pid, 0)
        try:
            found = json.loads(said)
        except ValueError:
            found = {"outcome": "killed"}
        return {"by": self.name, "version": self.version} | found


def _race(job: Json, version: str, seen: str, name: str, pipes: tuple[int, int, int]) -> None:
    """The child's life; never returns."""
    ready, go, told = pipes
    found: Json = {}
    try:
        tracking = open_tracking(job["uri"])
        aliases(tracking, job["model"])
        os.write(ready, b"!")
        os.read(go, 1)
        began = time.monotonic()
        try:
            move = promote(tracking, job["model"], version, by=name, why=f"{name} was sure", expect=seen)
            found = {"outcome": "won", "entry": move.entry}
        except PotstillError as fault:
            found = {"outcome": "refused", "message": str(fault)}
        found["seconds"] = time.monotonic() - began
    except BaseException:
        found = {"outcome": "failed", "message": traceback.format_exc()}
    os.write(told, json.dumps(found).encode())
    os._exit(0)


def _champion(job: Json) -> str:
    """The champion as a new process reads it."""
    told, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(said, aliases(open_tracking(job["uri"]), job["model"]).get("champion", "none").encode())
        os._exit(0)
    os.close(said)
    with os.fdopen(told) as stream:
        found = stream.read()
    os.waitpid(pid, 0)
    assert found, "the registry could not be read"
    return found


def main() -> None:
    job: Json = json.loads(sys.argv[1])
    code_state()
    chance = random.Random(job["seed"])
    rounds = []
    champion, longest_s = _champion(job), FIRST_MOVE_S
    for number in range(job["rounds"]):
        versions = chance.sample([each for each in job["versions"] if each != champion], job["racers"])
        racers = [Racer(job, version, champion, f"racer-{number}-{at}") for at, version in enumerate(versions)]
        for each in racers:
            each.wait_until_ready()
        doomed = [each for each in racers if chance.random() < job["killed"]]
        for each in racers:
            each.go()
        began = time.monotonic()
        for delay, each in sorted(((chance.uniform(0, longest_s), each) for each in doomed), key=lambda pair: pair[0]):
            time.sleep(max(0.0, began + delay - time.monotonic()))
            os.kill(each.pid, signal.SIGKILL)
        results = [each.outcome() for each in racers]
        longest_s = max((each["seconds"] for each in results if "seconds" in each), default=longest_s)
        seen, champion = champion, _champion(job)
        rounds.append({"seen": seen, "after": champion, "racers": results})
    print(json.dumps(rounds))


if __name__ == "__main__":
    main()
