"""The scenarios of the gateway's benchmark: which policies are on, as words for `door.py`."""

from __future__ import annotations

import json
import random

KEY = "benchmark-key"
WORDS = (
    "card", "payment", "transfer", "account", "refund", "top", "up", "exchange", "rate", "cash", "machine", "app",
    "pin", "code", "phone", "address", "fee",
)  # fmt: skip

KEYS = ["keys=[GATEWAY_KEY]"]
BARE = ["capture=null", "dashboard=false"]
MANY = 10**9  # a limit that is counted and never met
LIMITS = [f"limits={{requests_per_minute: {MANY}, tokens_per_minute: {MANY}, concurrent: 10000}}"]
BUDGETS = [
    "budgets={key: {daily_usd: 100000, total_usd: 1000000}, tenant: {daily_usd: 100000}}",
    "prices={student: {input: 0.1, output: 0.4}, baseline: {input: 2.0, output: 8.0}}",
]
SCREEN = ["screen={injection: {}, personal: {}, toxicity: {}, blocklist: {words: [forbidden, not allowed]}}"]
FILTER = ["filter={personal: {}, secrets: {}, blocklist: {words: [forbidden, not allowed]}}"]
EXACT = ["cache={exact: {}}"]
CACHES = ["cache={exact: {}, semantic: {}}"]
LARGE = ["large={url: ENGINE/v1, model: large, price: {input: 2.0, output: 8.0}}"]
ESCALATE = [*LARGE, "escalate={}", "repair=true"]
DIRECT = ["direct={rules: [{when: [{field: characters, over: 100000}], to: large}]}"]
DRIFT = ["drift={}"]
LOG = ["telemetry={log: stderr}"]
EVERY = [*KEYS, *LIMITS, *BUDGETS, *SCREEN, *FILTER, *EXACT, *ESCALATE, *DRIFT, *LOG]

# What one policy costs is the difference from `keys`. `every policy` has the exact cache in front and misses always.
SCENARIOS: dict[str, list[str]] = {
    "nothing on": BARE,
    "keys": [*BARE, *KEYS],
    "limits": [*BARE, *KEYS, *LIMITS],
    "budgets": [*BARE, *KEYS, *BUDGETS],
    "screens": [*BARE, *KEYS, *SCREEN],
    "escalation by confidence": [*BARE, *KEYS, *ESCALATE],
    "exact cache, all missed": [*BARE, *KEYS, *EXACT],
    "exact-cache hit": [*BARE, *KEYS, *EXACT],
    "semantic cache": [*BARE, *KEYS, *CACHES],
    "drift": [*BARE, *KEYS, *DRIFT],
    "request log": [*BARE, *KEYS, *LOG],
    "capture, redacted": ["dashboard=false", *KEYS],
    "every policy": EVERY,
    "every policy, and the semantic cache": [*[each for each in EVERY if each not in EXACT], *CACHES],
    "every policy, free text": ["--task=generation", *[each for each in EVERY if each not in ESCALATE], *LARGE],
}


def scenario_env() -> dict[str, str]:
    return {"GATEWAY_KEY": KEY}


def texts(count: int) -> list[str]:
    """Different questions of some ten words."""
    draw = random.Random(0)
    return [f"{' '.join(draw.choices(WORDS, k=10))} {at}" for at in range(count)]


def bodies(repeated: bool = False, stream: bool = False, count: int = 40_000) -> list[str]:
    """Requests, all different, or a hundred of them over and over."""
    return [
        json.dumps({"model": "mock", "messages": [{"role": "user", "content": each}], "stream": stream})
        for each in texts(100 if repeated else count)
    ]
