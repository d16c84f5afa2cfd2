"""Ten people at one registry, racers killed at random moments, 500 cycles: SQLite and PostgreSQL."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from potstill.tracking import client, default_uri, open_tracking
from potstill.tracking_moves import history, promote, rollback
from tests.mlflow_server import mlflow_server, postgresql
from tests.racing import assert_whole, check_race, outcomes, race
from tests.stages.registry_workshop import Workshop

pytestmark = pytest.mark.faults
CYCLES = int(os.environ.get("POTSTILL_CYCLES", "500"))
ROUNDS = int(os.environ.get("POTSTILL_ROUNDS", "20"))
VERSIONS = 12


@contextmanager
def opened(backend: str, folder: Path) -> Iterator[Workshop]:
    """A working folder over SQLite, over PostgreSQL directly, or over a server with two workers on PostgreSQL."""
    work = folder / "work"
    work.mkdir()
    if backend == "sqlite":
        yield Workshop(work, open_tracking(default_uri(work)))
        return
    with postgresql() as database:
        if backend == "postgresql":
            yield Workshop(work, open_tracking(database))
            return
        with mlflow_server(folder, database, workers=2) as server:
            yield Workshop(work, open_tracking(server.with_password))


@pytest.mark.parametrize("backend", ["sqlite", "postgresql", "server"])
@pytest.mark.parametrize("killed", [0.0, 0.5])
def test_ten_racing_promoters_have_one_winner_each_and_the_history_is_whole(
    tmp_path: Path, backend: str, killed: float
) -> None:
    with opened(backend, tmp_path) as workshop:
        tracking = workshop.tracking
        versions = [workshop.version("race", str(n).encode()) for n in range(VERSIONS)]
        promote(tracking, "race", versions[0], by="ann", why="the first")
        began = time.monotonic()
        rounds = race(tracking.uri, "race", versions, racers=10, rounds=ROUNDS, killed=killed, seed=7)
        took_s = time.monotonic() - began
        print(f"\n{backend}, {killed:.0%} killed: {ROUNDS} rounds in {took_s:.0f} s, {outcomes(rounds)}")
        check_race(tracking, "race", rounds, before=1)
        if not killed:
            assert outcomes(rounds) == {"won": ROUNDS, "refused": 9 * ROUNDS}


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_500_cycles_of_promote_and_rollback_keep_every_entry_and_stay_fast(tmp_path: Path, backend: str) -> None:
    with opened(backend, tmp_path) as workshop:
        tracking = workshop.tracking
        for n in range(3):
            workshop.version("cycles", str(n).encode())
        promote(tracking, "cycles", "1", by="ann", why="the first")
        promote(tracking, "cycles", "2", by="ann", why="the second")
        took: list[float] = []
        for number in range(CYCLES):
            began = time.monotonic()
            promote(tracking, "cycles", "3", by="ann", why=f"cycle {number}")
            rollback(tracking, "cycles", by="bob", why=f"cycle {number}")
            took.append(time.monotonic() - began)
        began = time.monotonic()
        told = history(tracking, "cycles")
        read_s = time.monotonic() - began
        edge = max(1, CYCLES // 10)
        first, last = sorted(took[:edge])[edge // 2], sorted(took[-edge:])[edge // 2]
        print(
            f"\n{backend}: {CYCLES} cycles in {sum(took):.0f} s, median of the first tenth {first * 1000:.0f} ms, of "
            f"the last {last * 1000:.0f} ms; {len(told)} moves read in {read_s:.2f} s"
        )
        assert_whole(told)
        expected = [(action, f"cycle {n}") for n in range(CYCLES) for action in ("promote", "rollback")]
        assert [(move.action, move.why) for move in told[2:]] == expected
        stored = client(tracking).get_registered_model("cycles").aliases
        assert (str(stored["champion"]), str(stored["previous"])) == ("2", "1")
        assert last < 3 * first + 0.2
        assert read_s < 10.0
