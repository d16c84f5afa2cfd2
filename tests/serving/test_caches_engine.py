"""Promises of the caches before the real engine: what is given again is what it said, and its own reuse is reported."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from openai import AsyncOpenAI

from potstill.serving.run import running_server
from potstill.serving.settings import ServeSettings

STORY = "I bought this lamp in spring and it was wonderful for weeks, bright and warm and quiet, until "


def test_identical_requests_at_once_are_one_for_the_engine_and_its_prefix_reuse_is_counted(
    artifact: Path, tmp_path: Path
) -> None:
    settings = ServeSettings.model_validate({"port": 0, "cache": {"exact": {}}, "threads": 1, "slots": 2})

    async def main(base_url: str) -> None:
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
            ask = client.chat.completions.with_raw_response.create
            messages = [{"role": "user", "content": STORY + "it broke."}]
            raw = await asyncio.gather(*(ask(model="m", messages=messages) for _ in range(20)))  # type: ignore[call-overload]
            answers = [each.parse() for each in raw]
            assert len({each.choices[0].message.content for each in answers}) == 1
            assert len({each.id for each in answers}) == 20
            assert sorted(each.headers["x-potstill-cache"] for each in raw) == ["miss"] + ["shared"] * 19
            messages[0]["content"] = STORY + "my cat found it."
            again = await ask(model="m", messages=messages)  # type: ignore[call-overload]
            assert int(again.headers["x-potstill-prefix-cached"]) > 5
            assert again.parse().usage.prompt_tokens_details.cached_tokens > 5

    with running_server(artifact, settings, "m", tmp_path / "captured" / "m") as server:
        asyncio.run(main(server.base_url))
        text = httpx.get(f"{server.url}/metrics").text
    values = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if line.startswith("potst")}
    assert values['potstill_engine_prompt_tokens_total{how="reused"}'] > 5
    assert values['potstill_engine_prompt_tokens_total{how="computed"}'] > 5
    assert values['potstill_cache_total{cache="exact",outcome="shared"}'] == 19
