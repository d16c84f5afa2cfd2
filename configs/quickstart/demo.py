"""The quick start: run the recipe, serve what it made, ask three questions, show one table.

    python configs/quickstart/demo.py [--started SECONDS_SINCE_1970]          # make demo does this

Writes `work/quickstart/summary.json` with every figure shown. A gate that refuses is a result and not a failure: it is
said first. Exit code: 0 done, else that of the command that failed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from potstill.commands.stages import interval
from potstill.manifest import code_state, library_versions, write_atomically

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "configs/quickstart/recipe.yaml"
LOG = ROOT / "work" / "quickstart" / "traffic" / "log.jsonl.gz"
SUMMARY = ROOT / "work" / "quickstart" / "summary.json"
POTSTILL = [sys.executable, "-m", "potstill.cli"]
STAGES = {"dataset": "distill", "adapter": "train", "artifact": "export", "report": "evaluate", "version": "register"}
GATE_REFUSED = 3
READY_S = 90.0
# A customer's message and what most people would call it.
QUESTIONS = (
    ("I love this little camera, the pictures are gorgeous.", "positive"),
    ("The battery died after two days and nobody answers my e-mails.", "negative"),
    ("The parcel arrived on Tuesday.", "neutral"),
)


def run_recipe() -> dict[str, Any]:
    """What `potstill run` says it did (progress goes to standard error). Exits as it does, but for a refused gate."""
    print(f"$ potstill run {RECIPE}", flush=True)
    done = subprocess.run([*POTSTILL, "run", RECIPE, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, GATE_REFUSED):
        sys.exit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def serve_words(artifact: Path, port: int) -> list[str]:
    return ["serve", _shown(artifact), f"port={port}", "--recipe", RECIPE]


@contextmanager
def serving(artifact: Path) -> Iterator[str]:
    """The address of `potstill serve` as a process of its own, ended with SIGTERM as a service manager would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = serve_words(artifact, port)
    print(f"\n$ potstill {' '.join(words)}", flush=True)
    server = subprocess.Popen([*POTSTILL, *words], cwd=ROOT)
    try:
        wait_until_ready(server, f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Returns once /readyz says 200; exits with the server's own code when it ends before."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(server.returncode or 1)
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit(f"demo: {url}/readyz was not ready within {READY_S:.0f} s; the server's output stands above")


def service_instructions() -> str:
    """The system prompt of the log: the service keeps sending it, and the server leaves it out as training did."""
    with gzip.open(LOG, "rt") as stream:
        first = json.loads(stream.readline())
    return str(first["request"]["messages"][0]["content"])


def ask(url: str) -> list[dict[str, Any]]:
    """The three answers: plain, streamed, and plain with feedback, by the openai client as a service would use it."""
    from openai import OpenAI

    system = service_instructions()
    asked: list[dict[str, Any]] = []
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id
        for number, (text, expected) in enumerate(QUESTIONS):
            start = time.perf_counter()
            messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            found = (_streamed if number == 1 else _plain)(client, model, messages)
            found |= {"text": text, "expected": expected, "latency_ms": round(1000 * (time.perf_counter() - start), 1)}
            found["feedback"] = give_feedback(url, found) if number == 2 else None
            asked.append(found)
            print(f"  {found['answer']:<9} {found['latency_ms']:4.0f} ms  {text}{_how(found)}", flush=True)
    return asked


def _plain(client: Any, model: str, messages: Any) -> dict[str, Any]:
    completion = client.chat.completions.create(model=model, messages=messages)
    return {
        "id": completion.id,
        "answer": completion.choices[0].message.content or "",
        "streamed": False,
        "prompt_tokens": completion.usage.prompt_tokens,
    }


def _streamed(client: Any, model: str, messages: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"id": "", "answer": "", "streamed": True, "prompt_tokens": None}
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, stream_options=options):
        found["id"] = chunk.id
        found["answer"] += "".join(each.delta.content or "" for each in chunk.choices)
        found["prompt_tokens"] = chunk.usage.prompt_tokens if chunk.usage else found["prompt_tokens"]
    return found


def give_feedback(url: str, question: dict[str, Any]) -> dict[str, Any]:
    """A person's opinion on an answer: thumbs up, or the answer that should have been given."""
    opinion: dict[str, Any] = {"kind": "thumbs", "value": True}
    if question["answer"] != question["expected"]:
        opinion = {"kind": "correction", "value": question["expected"]}
    body = {"id": question["id"], "name": "demo", "by": "demo", **opinion}
    httpx.post(f"{url}/v1/feedback", json=body, timeout=30).raise_for_status()
    return opinion


def _how(question: dict[str, Any]) -> str:
    words = ["streamed"] if question["streamed"] else []
    if question["feedback"]:
        words.append(f"feedback: {question['feedback']['kind']} {question['feedback']['value']}")
    return f"  ({', '.join(words)})" if words else ""


def verdict_of(report: dict[str, Any]) -> dict[str, Any]:
    """Whether the student's file is above the teacher, in one plain sentence, with the comparison behind it."""
    gate = report["gate"]
    student, teacher = gate["candidate"], gate["baseline"]
    main = next(e for e in report["comparisons"] if (e["candidate"], e["baseline"]) == (student, teacher))
    ours, theirs = (report["candidates"][name]["quality"]["value"] for name in (student, teacher))
    figures = (
        f"{ours:.1%} against {theirs:.1%} on {main['n']} held-out rows with human gold; "
        f"difference {100 * main['difference']:+.1f} points [{100 * main['low']:+.1f}, {100 * main['high']:+.1f}]"
    )
    if main["verdict"] == "superior":
        sentence = f"The student's file BEATS the teacher: {figures}."
    elif ours > theirs and main["verdict"] == "non_inferior":
        sentence = (
            f"The student's file scores above the teacher: {figures}. It is shown to be not worse by more than "
            f"{100 * main['margin']:.0f} points; that it is better is not shown."
        )
    elif ours > theirs:
        sentence = f"The student's file scores above the teacher, but nothing is shown by it: {figures}."
    else:
        sentence = f"The student's file DOES NOT BEAT the teacher: {figures}."
    if not gate["passed"]:
        sentence += f" The gate refused: {'; '.join(gate['reasons'])}."
    kept = {key: main[key] for key in ("difference", "low", "high", "margin", "verdict", "n")}
    return {"student": student, "teacher": teacher, "above_teacher": ours > theirs, **kept, "sentence": sentence}


def summarise(outcome: dict[str, Any], questions: Sequence[dict[str, Any]], seconds: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json."""
    folder = Path(outcome["report"]["path"])
    report = json.loads((folder / "report.json").read_text())
    kept = ("rows", "quality", "agreement", "valid_rate", "latency_ms", "size_bytes", "engine", "cost")
    version = json.loads((Path(outcome["version"]["path"]) / "manifest.json").read_text())["facts"]
    return {
        "command": "make demo",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {"cores": os.cpu_count()},
        "code": code_state(),
        "versions": library_versions(),
        "verdict": verdict_of(report),
        "gate": outcome["gate"],
        "candidates": {name: {key: entry.get(key) for key in kept} for name, entry in report["candidates"].items()},
        "seconds": {"stages": {STAGES[noun]: outcome[noun]["seconds"] for noun in STAGES}, **seconds},
        "skipped": {STAGES[noun]: outcome[noun]["skipped"] for noun in STAGES},
        "questions": list(questions),
        "places": {
            "report": str(folder / "report.html"),
            "artifact": outcome["artifact"]["path"],
            "mlflow": version["tracking_uri"],
            "version": version["uri"],
        },
    }


def table(summary: dict[str, Any]) -> str:
    """Teacher, base, adapter and file, a line each."""
    names = {"teacher": "teacher (Gemma 3 270M, 12-shot)", "base": "base (SmolLM2-135M, untrained)"}
    rows = [["", "accuracy on gold", "agreement with teacher", "p50 ms*", "file"]]
    for name, each in summary["candidates"].items():
        p50, size = each["latency_ms"]["p50"], each["size_bytes"]
        rows.append(
            [
                names.get(name, name),
                interval(each["quality"]),
                interval(each["agreement"]) if name != "teacher" else "-",
                f"{p50:,.0f}" if p50 is not None else "-",
                f"{size / 1e6:,.0f} MB" if size is not None else "-",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def show(summary: dict[str, Any]) -> None:
    """The result first, then the table, times and places."""
    seconds = summary["seconds"]
    alone = statistics.median(each["latency_ms"] for each in summary["questions"])
    print(f"\n{summary['verdict']['sentence']}\n\n{table(summary)}")
    print(
        "* as measured: the teacher one call at a time, when it was recorded; base and file four calls at once; the "
        f"adapter in batches. Asked above one at a time, the file took {alone:.0f} ms (median of three)."
    )
    times = [
        f"{stage} {took:.0f} s{' (skipped now)' if summary['skipped'][stage] else ''}"
        for stage, took in seconds["stages"].items()
    ]
    print(f"\nstages:  {', '.join(times)}")
    total = f", {seconds['total']:.0f} s since make began" if seconds["total"] is not None else ""
    print(f"now:     run {seconds['run']:.0f} s, serve and ask {seconds['serve']:.0f} s{total}")
    print(f"report:  {_shown(Path(summary['places']['report']))}")
    print(f"MLflow:  {summary['places']['mlflow']} ({summary['places']['version']}); `make ui` shows it")
    print(f"figures: {_shown(SUMMARY)}")


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--started", type=float, help="when the whole began, for the total (seconds since 1970)")
    options = parser.parse_args()
    start = time.monotonic()
    outcome = run_recipe()
    ran = time.monotonic()
    with serving(Path(outcome["artifact"]["path"])) as url:
        questions = ask(url)
    served = time.monotonic()
    total = round(time.time() - options.started, 1) if options.started else None
    seconds = {"run": round(ran - start, 1), "serve": round(served - ran, 1), "total": total}
    summary = summarise(outcome, questions, seconds)
    write_atomically(SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False).encode())
    show(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
