"""Versions of a model that answer recognisably, and clients that look at every chunk: for tests of swaps."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from potstill.contract import Contract, Golden
from potstill.manifest import write_manifest
from potstill.prompt import PromptRule
from potstill.serving.engine_settings import VllmSettings
from potstill.serving.settings import ServeSettings

FAKE = Path(__file__).with_name("fake_vllm.py")
GOLDEN = Golden([{"role": "user", "content": "golden"}], [], "golden text", [1, 2, 3])
BODY = {"model": "m", "messages": [{"role": "user", "content": "which version are you?"}]}


def fake_vllm(folder: Path) -> str:
    """An executable `vllm`."""
    path = folder / "vllm"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def version(folder: Path, answer: str, canaries: Sequence[str] = (), **behaviour: Any) -> Path:
    """An artifact folder for vLLM that answers with these words; `canaries` are answers that verification saw."""
    model = folder / "model-bf16"
    model.mkdir(parents=True)
    (model / "answer.txt").write_text(answer)
    (model / "behaviour.json").write_text(json.dumps(behaviour))
    contract = Contract({"kind": "generation"}, "", [], PromptRule().to_json(), 64, 512, [GOLDEN])
    contract.write(folder)
    kept = [{"messages": [{"role": "user", "content": "canary"}], "tools": [], "answer": each} for each in canaries]
    (folder / "verification.json").write_text(json.dumps({"safetensors-bf16": {"canaries": kept}}))
    facts = {"formats": {"safetensors-bf16": {"file": "model-bf16", "engine": "transformers"}}}
    write_manifest(folder, "artifact", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    return folder


def settings(folder: Path, **more: Any) -> ServeSettings:
    engine = VllmSettings(kind="vllm", command=fake_vllm(folder), start_timeout_s=30, **more.pop("engine", {}))
    return ServeSettings(port=0, engine=engine, **({"capture": None} | more))


@dataclass
class Seen:
    """What clients saw: answers by version, and everything that should not have been."""

    answers: dict[str, int] = field(default_factory=dict)
    streams: int = 0
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    def note(self, prints: set[str], text: str, expected: dict[str, str]) -> None:
        if len(prints) != 1 or expected.get(next(iter(prints), "")) != text:
            self.mixed.append(f"{sorted(prints)}: {text!r}")
        else:
            self.answers[text] = self.answers.get(text, 0) + 1


async def clients(url: str, expected: dict[str, str], until: asyncio.Event, count: int, body: Any = BODY) -> Seen:
    """Ask until told to end, every other time for a stream; `expected` is the text by fingerprint."""
    seen = Seen()
    limits = httpx.Limits(max_connections=count)

    async def one(at: int) -> None:
        asked = at
        while not until.is_set():
            asked += 1
            try:
                await (_stream if asked % 2 else _plain)(client, url, expected, seen, body)
            except httpx.HTTPError as fault:
                seen.failed.append(repr(fault))

    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        await asyncio.gather(*(one(at) for at in range(count)))
    return seen


async def _plain(client: httpx.AsyncClient, url: str, expected: dict[str, str], seen: Seen, body: Any) -> None:
    reply = await client.post(f"{url}/v1/chat/completions", json=body)
    if reply.status_code != 200:
        seen.failed.append(f"{reply.status_code}: {reply.text[:200]}")
        return
    found = reply.json()
    header = reply.headers["x-potstill-artifact"]
    seen.note({found["system_fingerprint"], header}, found["choices"][0]["message"]["content"], expected)


async def _stream(client: httpx.AsyncClient, url: str, expected: dict[str, str], seen: Seen, body: Any) -> None:
    prints, text, done = set(), "", False
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body | {"stream": True}) as reply:
        if reply.status_code != 200:
            seen.failed.append(f"{reply.status_code}: {(await reply.aread())[:200]!r}")
            return
        prints.add(reply.headers["x-potstill-artifact"])
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line:
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    seen.failed.append(str(chunk))
                    return
                prints.add(chunk["system_fingerprint"])
                text += "".join(each["delta"].get("content") or "" for each in chunk["choices"])
    seen.streams += 1
    if not done:
        seen.failed.append("a stream without its end")
    seen.note(prints, text, expected)


async def swapped(url: str, **asked: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=120) as client:
        return await client.post(f"{url}/admin/swap", json=asked)
