"""One hour of real arrivals, faster: the Azure LLM inference trace of 2023 (Patel et al., Splitwise, ISCA 2024).

The trace has no texts: each request asks for as many tokens as it got there (at most 128, since long answers would be
time in which nothing happens at the gateway), and the mock engine obeys.
"""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path

from benchmarks.gateway.policies import KEY, SCENARIOS, WORDS, scenario_env
from benchmarks.gateway.processes import load, running
from benchmarks.record import Record

FASTER = 10.0
MOST_TOKENS = 128
EVERY_MS = 20


def azure(record: Record, folder: Path, seconds: float) -> None:
    """Replay the first `seconds * FASTER` of both traces through every policy and directly."""
    lines = list(requests(folder, seconds))
    words = SCENARIOS["every policy, free text"]
    with running("benchmarks.gateway.mock_engine", ["--obey", "--every-ms", str(EVERY_MS)]) as engine:
        direct = load(engine.url, lines, timed=True, stream=True, connections=400)
        with running("benchmarks.gateway.door", ["--engine", engine.url, *words], scenario_env()) as door:
            ours = load(door.url, lines, key=KEY, timed=True, stream=True, connections=400)
    record.figure("azure trace: requests", ours["requests"], "requests")
    for what in ("first_ms", "between_ms", "latency_ms"):
        for at in ("p50", "p99"):
            record.figure(
                f"azure trace: added {what.removesuffix('_ms')} {at}", ours[what][at] - direct[what][at], "ms"
            )
    refused = ours["requests"] - ours["statuses"].get("200", 0) + sum(ours["faults"].values())
    record.check("azure trace: requests that failed", refused, at_most=0)


def requests(folder: Path, seconds: float) -> list[str]:
    """SECONDS, a tab and a body, in the order of time, for `load.py --timed`."""
    rows = []
    for name in ("AzureLLMInferenceTrace_code.csv", "AzureLLMInferenceTrace_conv.csv"):
        with (folder / name).open(newline="", encoding="utf-8-sig") as stream:
            rows += [(datetime.fromisoformat(row["TIMESTAMP"][:26]), row) for row in csv.DictReader(stream)]
    rows.sort(key=lambda each: each[0])
    begin = rows[0][0]
    lines = []
    for number, (moment, row) in enumerate(rows):
        at = (moment - begin).total_seconds() / FASTER
        if at > seconds:
            break
        text = " ".join([*(WORDS * 4)[: max(1, min(int(row["ContextTokens"]), 60))], str(number)])
        tokens = max(1, min(int(row["GeneratedTokens"]), MOST_TOKENS))
        body = {"model": "mock", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "stream": True}
        lines.append(f"{at:.4f}\t{json.dumps(body)}")
    return lines
