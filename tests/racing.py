"""What a race for `champion` has to leave behind, checked on the registry itself and not on Potstill's word alone."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.tracking import Tracking, client
from potstill.tracking_moves import Move, history, settle

ROOT = Path(__file__).resolve().parents[1]
Json = dict[str, Any]


def race(
    uri: str, model: str, versions: Sequence[str], *, racers: int, rounds: int, killed: float, seed: int
) -> list[Json]:
    """The rounds of a race, run in processes of their own."""
    job = {
        "uri": uri, "model": model, "versions": list(versions), "racers": racers, "rounds": rounds, "killed": killed,
        "seed": seed,
    }  # fmt: skip
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.registry_children", json.dumps(job)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[Json] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == rounds
    return found


def outcomes(rounds: Sequence[Json]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for each in rounds:
        for racer in each["racers"]:
            counted[racer["outcome"]] = counted.get(racer["outcome"], 0) + 1
    return counted


def check_race(tracking: Tracking, model: str, rounds: Sequence[Json], before: int) -> None:
    """One winner a round, the rest told by name; the history holds exactly the winners; aliases follow it.

    `before` is how many moves the history held when the race began. A killed racer may have moved champion without
    living to say so: then it is that round's winner.
    """
    told = history(tracking, model)
    assert_whole(told)
    moves = told[before:]
    failed = [racer for each in rounds for racer in each["racers"] if racer["outcome"] == "failed"]
    assert not failed, failed[0]["message"]
    by_round: dict[int, list[Move]] = {}
    for move in moves:
        by_round.setdefault(int(move.by.split("-")[1]), []).append(move)
    for number, each in enumerate(rounds):
        won = [racer for racer in each["racers"] if racer["outcome"] == "won"]
        dead = {racer["by"] for racer in each["racers"] if racer["outcome"] == "killed"}
        accepted = by_round.get(number, [])
        assert len(won) <= len(accepted) <= 1, (number, won, accepted)
        assert accepted or len(dead) == len(each["racers"]), "somebody lived, so somebody won"
        for move in accepted:
            assert (move.before, move.version) == (each["seen"], each["after"])
            assert move.by in {racer["by"] for racer in won} | dead
            for racer in each["racers"]:
                if racer["outcome"] == "refused":
                    assert move.by in racer["message"]
                    assert move.why in racer["message"]
                    assert move.at in racer["message"]
        if not accepted:
            assert each["after"] == each["seen"]
    settle(tracking, model)
    stored = client(tracking).get_registered_model(model).aliases
    assert str(stored["champion"]) == rounds[-1]["after"] == told[-1].version
    assert len({move.by for move in moves}) == len(moves)


def assert_whole(told: Sequence[Move]) -> None:
    """Every move begins where the one before it ended, in one order."""
    assert [move.entry for move in told] == sorted({move.entry for move in told})
    for earlier, later in itertools.pairwise(told):
        assert later.before == earlier.version, (earlier, later)
