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
NOTHING = ["capture=null"]

SCENARIOS: dict[str, list[str]] = {
    "nothing on": NOTHING,
    "keys": [*NOTHING, *KEYS],
    "capture": KEYS,
}


def scenario_env() -> dict[str, str]:
    return {"GATEWAY_KEY": KEY}


def bodies(repeated: bool = False, stream: bool = False, count: int = 20_000) -> list[str]:
    """Requests of some ten words; all different, or a hundred of them over and over."""
    draw = random.Random(0)
    texts = [f"{' '.join(draw.choices(WORDS, k=10))} {at}" for at in range(100 if repeated else count)]
    return [
        json.dumps({"model": "mock", "messages": [{"role": "user", "content": each}], "stream": stream})
        for each in texts
    ]
