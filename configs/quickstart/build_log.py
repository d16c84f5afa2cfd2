"""Build the quick start's traffic log from the messages' text and the recorded answers.

    python configs/quickstart/build_log.py [--out work/quickstart/traffic] [--force]

Writes `log.jsonl.gz` (a line an exchange, as a gateway would have captured it) and `gold.jsonl.gz` ({"id", "answer"}:
the mean of 20 ratings cut at 0.5 and -0.5). On a quarter of the calls one single rater's opinion is given as a
correction. The same lines come out on every machine (the same bytes, where zlib is the same); nothing is done
when they stand there already.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from messages import (
    CACHE,
    RATERS,
    SDIST_SHA256,
    RatedMessage,
    choose_calls,
    choose_examples,
    fetch_sdist,
    rank,
    rating_label,
    read_messages,
)
from teacher import MODEL, system_prompt

HERE = Path(__file__).resolve().parent
RECORDING = HERE / "teacher.jsonl"
OUT = HERE.parents[1] / "work" / "quickstart" / "traffic"
LOG, GOLD, STAMP = "log.jsonl.gz", "gold.jsonl.gz", "inputs.json"
SOURCES = ("messages.py", "teacher.py", "build_log.py", "teacher.jsonl")


def read_recording(path: Path) -> dict[str, dict[str, Any]]:
    """The recorded answers by id; raises RuntimeError when an id stands twice."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    found = {row["id"]: row for row in rows}
    if len(found) != len(rows):
        raise RuntimeError(f"{path}: {len(rows)} lines, but {len(found)} ids; record the teacher again")
    return found


def feedback(message: RatedMessage) -> list[dict[str, Any]]:
    """One rater's opinion of the right answer, on a quarter of the messages; the rater follows from the id."""
    if int(rank(f"feedback:{message.id}")[:8], 16) % 4 != 0:
        return []
    rater = int(rank(f"rater:{message.id}")[:8], 16) % RATERS
    value = rating_label(message.ratings[rater])
    return [{"kind": "correction", "name": "rater", "value": value, "time": None, "by": f"rater-{rater + 1:02d}"}]


def exchange(message: RatedMessage, row: dict[str, Any], system: str) -> dict[str, Any]:
    """One line of the log. The hour of the call was not kept and its price is nil, hence null."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": message.text}]
    answer = {"role": "assistant", "content": row["label"]}
    usage = {"prompt_tokens": row["prompt_tokens"], "completion_tokens": row["completion_tokens"]}
    return {
        "id": message.id,
        "time": None,
        "request": {"model": MODEL, "messages": messages, "temperature": 0},
        "response": {
            "choices": [{"index": 0, "message": answer, "finish_reason": "stop"}],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        },
        "latency_ms": row["latency_ms"],
        "cost_usd": None,
        "metadata": {"conversation": message.conversation, "source": message.source},
        "feedback": feedback(message),
    }


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines, gzipped without a time or a name inside; whole or not at all."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(gzip.compress(lines.encode(), mtime=0))
    os.replace(partial, path)


def inputs() -> dict[str, str]:
    """What the log follows from: sha256 of the source package and of the files beside this one."""
    found = {name: hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in SOURCES}
    return {"sdist": SDIST_SHA256, **found}


def stamp_of(out: Path) -> dict[str, Any]:
    """Inputs and outputs as they stand now: equal to what was stamped when there is nothing to do."""
    written = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in (LOG, GOLD)}
    return {"inputs": inputs(), "written": written}


def up_to_date(out: Path) -> bool:
    try:
        return bool(json.loads((out / STAMP).read_text()) == stamp_of(out))
    except (OSError, ValueError):
        return False


def build(out: Path, cache: Path = CACHE) -> tuple[int, int]:
    """Write both files into `out`; returns the number of exchanges and of those with feedback."""
    messages = read_messages(fetch_sdist(cache))
    calls = choose_calls(messages)
    recording = read_recording(RECORDING)
    strangers = recording.keys() - {each.id for each in calls}
    if strangers:
        raise RuntimeError(f"{RECORDING}: {len(strangers)} ids are no calls, as {min(strangers)}; record it again")
    answered: Sequence[RatedMessage] = [each for each in calls if each.id in recording]
    if len(answered) < len(calls):
        print(f"note: {len(answered)} of {len(calls)} calls are recorded; the rest is left out", file=sys.stderr)
    system = system_prompt(choose_examples(messages, calls))
    out.mkdir(parents=True, exist_ok=True)
    exchanges = [exchange(each, recording[each.id], system) for each in answered]
    write_lines(out / LOG, exchanges)
    write_lines(out / GOLD, ({"id": each.id, "answer": each.gold} for each in answered))
    (out / STAMP).write_text(json.dumps(stamp_of(out), indent=1) + "\n")
    return len(exchanges), sum(bool(each["feedback"]) for each in exchanges)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the source package is kept")
    parser.add_argument("--force", action="store_true", help="build again although nothing changed")
    options = parser.parse_args()
    if up_to_date(options.out) and not options.force:
        print(f"{options.out}: log and gold are there and their inputs unchanged; nothing to do")
        return 0
    try:
        exchanges, opinions = build(options.out, options.cache)
    except RuntimeError as fault:
        print(f"build_log: {fault}", file=sys.stderr)
        return 1
    print(f"{options.out}: {exchanges} exchanges, {opinions} with feedback; gold answers apart in {GOLD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
