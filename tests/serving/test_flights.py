"""Promises of single-flight alone, driven at random: whoever waits is told, whatever leaders and clients do."""

from __future__ import annotations

import asyncio
import random
from time import monotonic, time

import pytest

from potstill.serving.caches.flights import Flights
from potstill.serving.caches.kept import Kept
from potstill.serving.errors import RequestRefused


@pytest.mark.parametrize("seed", range(8))
def test_whoever_waits_is_told_whatever_leaders_and_clients_do(seed: int) -> None:
    """Leaders answer, fail, hang or are cancelled; waiters leave, run out of time, or take over. No flight is left."""
    draw = random.Random(seed)
    flights, ends = Flights(wait_s=0.05), {"answered": 0, "failed": 0, "late": 0, "left": 0}
    leading: dict[bytes, int] = {}

    async def ask(key: bytes) -> None:
        deadline = monotonic() + draw.choice([0.02, 0.3, 1.0])
        flight, kept = flights.find(key), None
        try:
            if flight is not None:
                if (kept := await flights.wait(flight, deadline)) is not None:
                    assert kept.answer == key
                    ends["answered"] += 1
                    return
            else:
                flight = flights.lead(key)
        except RequestRefused:
            assert monotonic() >= deadline
            ends["late"] += 1
            return
        leading[key] = leading.get(key, 0) + 1
        try:
            await asyncio.sleep(draw.choice([0, 0.01, 0.01, 0.12]))
            if draw.random() < 0.6:
                kept = Kept(key, time())
            ends["answered" if kept else "failed"] += 1
        finally:
            flights.land(flight, kept)

    async def client(key: bytes) -> None:
        await asyncio.sleep(draw.random() * 0.5)
        asking = asyncio.create_task(ask(key))
        if draw.random() < 0.3:
            await asyncio.sleep(draw.random() * 0.05)
            asking.cancel()
        try:
            await asking
        except asyncio.CancelledError:
            ends["left"] += 1

    async def main() -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(*(client(bytes([draw.randrange(6)])) for _ in range(600)))

    asyncio.run(main())
    assert len(flights) == 0
    assert sum(ends.values()) == 600
    assert ends["answered"] > 200
    assert sum(leading.values()) < 400
