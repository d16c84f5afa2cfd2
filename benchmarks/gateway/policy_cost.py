"""What keys, limits and budgets add to a call, in microseconds: their moments alone, no network, no engine.

Run: `python -m benchmarks.gateway.policy_cost [--calls 20000] [--redis NAME]`; prints one line a policy, median of five
rounds. With `--redis` (the NAME of a variable with its URL) limits and budgets are kept there.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from potstill.contract import Contract
from potstill.prompt import PromptRule
from potstill.serving import authenticate, budget, limits
from potstill.serving.authenticate import Keys
from potstill.serving.backends import Address
from potstill.serving.call import Asked, Call
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.http import Http
from potstill.serving.key_records import Key, new_secret, sha256_of
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.tasks import task_from

TASK = {"kind": "generation"}
BODY = {"model": "m", "messages": [{"role": "user", "content": "Where is my card? " * 10}], "max_tokens": 16}
USAGE = {"prompt_tokens": 50, "completion_tokens": 8, "total_tokens": 58}
LIMITS = {"requests_per_minute": 10**9, "concurrent": 1000}
BUDGETS = {"key": {"daily_usd": 1e5, "total_usd": 1e6}, "tenant": {"daily_usd": 1e5}}
ORDERS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "nothing": ([], {}),
    "keys": ([authenticate.make], {}),
    "keys and limits": ([authenticate.make, limits.make], {"limits": LIMITS}),
    "keys, limits and tokens a minute": (
        [authenticate.make, limits.make, limits.make_tokens],
        {"limits": LIMITS | {"tokens_per_minute": 10**12}},
    ),
    "keys and budgets": ([authenticate.make, budget.make], {"budgets": BUDGETS}),
    "keys, limits and budgets": (
        [authenticate.make, limits.make, budget.make],
        {"limits": LIMITS, "budgets": BUDGETS},
    ),
}


def server_with(order: list[Any], settings: dict[str, Any], folder: Path, secret: str) -> Server:
    contract = Contract(TASK, "", [], PromptRule().to_json(), 32, 512)
    served = Served(folder, "d" * 64, "scripted", folder, contract, task_from(TASK), PromptRule())
    prices = {"student": {"input": 0.05, "output": 0.1}}
    fleet = Fleet(Deployment("m", served, Address("http://127.0.0.1:9", "m")))
    keys = Keys({sha256_of(secret): Key("team", "acme", sha256_of(secret))})
    checked = ServeSettings.model_validate({"prices": prices, **settings})
    return Server(fleet, checked, order, keys=keys, state_dir=folder)


async def measured(server: Server, calls: int, secret: str) -> tuple[float, float, float]:
    """Microseconds a call: of processor time in all threads, and of the way of a call at the median and at p99."""
    headers = [(b"host", b"x"), (b"content-type", b"application/json"), (b"authorization", f"Bearer {secret}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    for step in server.plan.steps:
        await step.start()
    took: list[float] = []
    began = process_time()
    for at in range(calls):
        call = Call(Http(scope, None, None), server.plan)
        call.body, call.deployment = BODY, server.current
        start = perf_counter()
        for before in server.plan.before:
            await before(call)
        call.asked.append(Asked("student", "m", USAGE, 0.01))
        for end in server.plan.end:
            await end(call)
        took.append(perf_counter() - start)
        if at % 32 == 0:
            await asyncio.sleep(0)
    used = process_time() - began
    for step in reversed(server.plan.steps):
        await step.close()
    took.sort()
    return used / calls * 1e6, took[calls // 2] * 1e6, took[calls * 99 // 100] * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--redis")
    arguments = parser.parse_args()
    calls, state = arguments.calls, {"redis": arguments.redis} if arguments.redis else {}
    secret = new_secret()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ORDERS}
    for _ in range(5):
        for name, (order, settings) in ORDERS.items():
            with tempfile.TemporaryDirectory() as folder:
                server = server_with(order, settings | {"state": state}, Path(folder), secret)
                found[name].append(asyncio.run(measured(server, calls, secret)))
    print(f"{'':<34} CPU µs   p50 µs   p99 µs   a call, median of five rounds of {calls}")
    for name, rounds in found.items():
        cpu, p50, p99 = (statistics.median(each) for each in zip(*rounds, strict=True))
        print(f"{name:<34} {cpu:6.1f}   {p50:6.1f}   {p99:6.1f}")


if __name__ == "__main__":
    main()
