"""What the gateway adds to an engine that answers at once: processor time and latency, policy by policy, and peers.

    python -m benchmarks.gateway [--quick] [--litellm VENV/bin/litellm] [--azure FOLDER] [--artifact FOLDER]

Socket to socket: load generator, server and mock engine are processes of their own. What a server can do is given a
vCPU (requests a processor second of its process), since on a small machine the generator and the engine take their
share of the cores; latency comes from an open loop at a rate that leaves room, and what is *added* is the difference
from asking the engine directly in the same round. Rounds are interleaved. Goals: GOALS in the table below.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.gateway import peers, real, replay
from benchmarks.gateway.policies import FILTER, KEY, SCENARIOS, bodies, scenario_env
from benchmarks.gateway.processes import Running, load, running
from benchmarks.record import Record, arguments

PACKAGES = ("uvicorn", "uvloop", "httptools", "orjson", "msgspec", "xllamacpp", "redis")
MOCK, DOOR = "benchmarks.gateway.mock_engine", "benchmarks.gateway.door"


def main() -> int:
    """Measure, print, and return the exit code."""
    args = options()
    record = Record("gateway", quick=args.quick, packages=PACKAGES)
    rounds, seconds = (2, 3.0) if args.quick else (3, 6.0)
    if not args.only or args.only == "policies":
        policies(record, rounds, seconds, args.rate, args.litellm)
    if not args.only or args.only == "streams":
        streams(record, 1000, rounds)
    if args.azure and (not args.only or args.only == "azure"):
        replay.azure(record, args.azure, seconds=20.0 if args.quick else 120.0)
    if args.artifact and (not args.only or args.only == "real"):
        real.compare(record, args.artifact, turns=8 if args.quick else 24, requests=50)
    return record.finish(as_json=args.json, keep=args.keep)


def options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second of the open loop")
    parser.add_argument("--litellm", type=Path, help="the litellm command of an environment of its own")
    parser.add_argument("--azure", type=Path, help="folder of the Azure LLM inference trace 2023")
    parser.add_argument("--artifact", type=Path, help="an exported artifact, for the comparison with the real engine")
    parser.add_argument("--only", choices=("policies", "streams", "azure", "real"))
    return parser.parse_args()


def policies(record: Record, rounds: int, seconds: float, rate: float, litellm: Path | None) -> None:
    """Every scenario of ours, and LiteLLM's proxy, in turn; the engine asked directly in between."""
    found: dict[str, dict[str, list[float]]] = {}
    with running(MOCK, ["--tokens", "1"]) as engine:
        for at in range(rounds):
            direct = load(engine.url, bodies(), rate=rate, seconds=seconds, seed=at)["latency_ms"]
            for name, words in SCENARIOS.items():
                print(f"gateway: round {at + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                with running(DOOR, ["--engine", engine.url, *words], scenario_env()) as door:
                    add(found, name, one(door, direct, seconds, rate, at, name))
            if litellm is not None:
                print(f"gateway: round {at + 1} of {rounds}: LiteLLM", file=sys.stderr, flush=True)
                with peers.litellm(litellm, engine.url) as proxy:
                    add(found, "LiteLLM", one(proxy, direct, seconds, rate, at, "LiteLLM"))
            add(found, "engine itself", {"p50": direct["p50"], "p99": direct["p99"]})
    for name, figures in found.items():
        for what, values in figures.items():
            record.figure(f"{name}: {what}", values, "requests/s" if what.startswith("requests") else "ms")
    goals(record, found)


def one(
    server: Running, direct: dict[str, float], seconds: float, rate: float, seed: int, name: str
) -> dict[str, float]:
    """Requests a processor second in a closed loop; then the added latency in an open one."""
    lines = bodies(repeated="hit" in name)
    fresh = lines if "hit" in name else lines[-2000:]  # asked by nobody yet: no cache knows them
    load(server.url, lines[:200], key=KEY, seconds=1, connections=16)
    before = server.cpu_s()
    closed = load(server.url, lines[200:-2000] or lines, key=KEY, seconds=seconds, connections=32)
    used = server.cpu_s() - before
    opened = load(server.url, fresh, key=KEY, rate=rate, seconds=seconds, seed=seed)
    statuses = set(closed["statuses"]) | set(opened["statuses"])
    if statuses != {"200"}:
        raise RuntimeError(f"{name}: answered {closed['statuses']} and {opened['statuses']}, expected 200 alone")
    latency = opened["latency_ms"]
    return {
        "requests a processor second": closed["requests"] / used,
        "p50": latency["p50"], "p99": latency["p99"],
        "added p50": latency["p50"] - direct["p50"], "added p99": latency["p99"] - direct["p99"],
    }  # fmt: skip


def add(found: dict[str, dict[str, list[float]]], name: str, figures: dict[str, float]) -> None:
    for what, value in figures.items():
        found.setdefault(name, {}).setdefault(what, []).append(value)


def goals(record: Record, found: dict[str, dict[str, list[float]]]) -> None:
    """The goals that stand for the gateway, every policy on."""

    def median(name: str, what: str) -> float | None:
        return record.figures[f"{name}: {what}"].value if name in found else None

    record.check("every policy on: a processor second", median("every policy", "requests a processor second"),
                 at_least=750, unit="requests/s")  # fmt: skip
    record.check("every policy on: added p50", median("every policy", "added p50"), at_most=0.7, unit="ms")
    record.check("every policy on: added p99", median("every policy", "added p99"), at_most=3.0, unit="ms")
    record.check("exact-cache hit: a processor second", median("exact-cache hit", "requests a processor second"),
                 at_least=2500, unit="requests/s")  # fmt: skip
    record.check("exact-cache hit: p99", median("exact-cache hit", "p99"), at_most=1.0, unit="ms")
    if "LiteLLM" in found:
        ours, theirs = (median(name, "requests a processor second") for name in ("every policy", "LiteLLM"))
        record.check("every policy on / LiteLLM", ours / theirs if ours and theirs else None, at_least=1, unit="times")


def streams(record: Record, count: int, rounds: int) -> None:
    """Time between tokens of many streams at once, each five tokens a second, through us and directly.

    The filters hold words back until they can be no part of a match, so that tokens come later and together.
    """
    every = SCENARIOS["every policy, free text"]
    ways = {"every policy": every, "every policy but the filters": [each for each in every if each not in FILTER]}
    added: dict[str, list[float]] = {name: [] for name in ways}
    lines = bodies(stream=True)
    with running(MOCK, ["--tokens", "25", "--every-ms", "200"]) as engine:
        for at in range(rounds):
            direct = load(engine.url, lines, stream=True, rate=count / 4, connections=count, seconds=8)
            for name, words in ways.items():
                print(f"gateway: {count} streams: round {at + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                with running(DOOR, ["--engine", engine.url, *words], scenario_env()) as door:
                    ours = load(door.url, lines, key=KEY, stream=True, rate=count / 4, connections=count, seconds=8)
                added[name].append(ours["between_ms"]["p99"] - direct["between_ms"]["p99"])
    for name, each in added.items():
        figure = f"{count} streams, {name}: added time between tokens, p99"
        record.figure(figure, each, "ms")
        record.check(figure, record.figures[figure].value, at_most=2.0, unit="ms")


if __name__ == "__main__":
    raise SystemExit(main())
