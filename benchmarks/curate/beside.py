"""The peers' side of the benchmark: their environment, the rows they are given, and what their steps found.

Each peer is given a text a row, ready in memory: reading and parsing the log, timed with ours, costs it nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import measured
from benchmarks.record import ROOT

from .outcome import core
from .traffic import Planted

Json = dict[str, Any]
HERE = Path(__file__).parent
REQUIREMENTS = HERE / "peers.txt"
TIMEOUT_S = 600


@dataclass(frozen=True)
class Peer:
    """A step of a library: what it does, and how many rows it is given (--quick, else), so that it takes a minute."""

    step: str
    does: str
    rows_quick: int
    rows: int


PEERS = (
    Peer("rensa", "dedup", 20_000, 200_000),
    Peer("datasketch", "dedup", 10_000, 60_000),
    Peer("semhash", "dedup", 20_000, 100_000),
    Peer("datatrove-minhash", "dedup", 2_000, 10_000),
    Peer("presidio-rules", "redact", 5_000, 40_000),
    Peer("presidio-names", "redact", 500, 3_000),
    Peer("datatrove-pii", "redact", 20_000, 200_000),
)


@dataclass
class Ran:
    """A peer's runs: rows a second of the step alone, and a processor second; seconds until it can begin; peak in GB;
    what the first run found."""

    rates: list[float] = field(default_factory=list)
    cpu_rates: list[float] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)


def environment(folder: Path) -> Path | None:
    """The interpreter of the peers' environment, made when it is not there; None when it cannot be."""
    python, marker = folder / "env" / "bin" / "python", folder / "installed.txt"
    wanted = REQUIREMENTS.read_text()
    if python.exists() and marker.exists() and marker.read_text() == wanted:
        return python
    print("curate: installing the peers (once) ...", file=sys.stderr, flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / "env")], check=False)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(REQUIREMENTS)]
    if made.returncode or subprocess.run(pip, check=False, stderr=subprocess.DEVNULL).returncode:
        return None
    marker.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Versions of what peers.txt names, as installed."""
    listed = subprocess.run([str(python), "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    names = {line.partition("==")[0].strip() for line in REQUIREMENTS.read_text().splitlines() if line[:1] != "#"}
    return {f"peer {each['name']}": each["version"] for each in json.loads(listed) if _known(each["name"], names)}


def _known(name: str, names: set[str]) -> bool:
    return name.lower().replace("_", "-") in names


def write_rows(log: Path, truth: Sequence[Planted], folder: Path, most: int) -> None:
    """`dedup.jsonl` (prompts, no instructions), `redact.jsonl` (all texts of a row), `wanted.json` (rows to show)."""
    import orjson

    damaged = {each.row for each in truth if each.kind == "damaged"}
    with (
        log.open("rb") as lines,
        (folder / "dedup.jsonl").open("wb") as dedup,
        (folder / "redact.jsonl").open("wb") as redact,
    ):
        for row, line in enumerate(lines):
            if row >= most:
                break
            if row in damaged:
                continue
            data = orjson.loads(line)
            turns = [
                (each["content"] or "") + "".join(call["function"]["arguments"] for call in each.get("tool_calls", ()))
                for each in data["request"]["messages"]
                if each["role"] != "system"
            ]
            answer = data["response"]["choices"][0]["message"]["content"]
            dedup.write(orjson.dumps({"row": row, "text": "\n".join(turns)}) + b"\n")
            redact.write(orjson.dumps({"row": row, "text": "\n".join([*turns, answer])}) + b"\n")
    (folder / "wanted.json").write_text(json.dumps([each.row for each in truth if each.kind == "personal"]))


def run_peer(python: Path, peer: Peer, quick: bool, folder: Path, truth: Sequence[Planted], ran: Ran) -> str | None:
    """One run of a peer, added to its others; the reason when it could not run."""
    out, rows = folder / "out.json", peer.rows_quick if quick else peer.rows
    out.unlink(missing_ok=True)
    words = [str(python), str(HERE / "peers.py"), peer.step, str(rows), str(folder / f"{peer.does}.jsonl"), str(out)]
    words += [str(folder / "wanted.json")] if peer.does == "redact" else []
    cost = measured(words, cwd=ROOT, timeout_s=TIMEOUT_S)
    if cost.code or not out.exists():
        return (cost.stderr.strip().splitlines() or [f"exit code {cost.code}"])[-1]
    done = json.loads(out.read_text())
    ran.rates.append(done["rows"] / done["step_s"])
    ran.cpu_rates.append(done["rows"] / done["step_cpu_s"])
    ran.ready_s.append(done["ready_s"])
    ran.peaks.append(cost.peak_bytes / 1e9)
    ran.found = ran.found or (_dropped(done, truth) if peer.does == "dedup" else _redacted(done, truth))
    return None


def _dropped(done: Json, truth: Sequence[Planted]) -> dict[str, float]:
    """Shares of repeats found (either line of the pair dropped), and of what was dropped that is of a repeated pair."""
    dropped = set(done["dropped"])
    seen = [each for each in truth if each.row <= done["last"]]
    found = {}
    for kind in ("exact", "near"):
        pairs = [each for each in seen if each.kind == kind]
        found[f"{kind} repeats found"] = _share(sum(not dropped.isdisjoint((e.row, e.twin_row)) for e in pairs), pairs)
    family = {row for each in seen if each.twin_row is not None for row in (each.row, each.twin_row)}
    found["dropped rightly"] = _share(len(dropped & family), dropped)
    return found


def _redacted(done: Json, truth: Sequence[Planted]) -> dict[str, float]:
    """Shares of personal values of which no core is left: of all, and of the kinds other than API keys."""
    planted = [each for each in truth if str(each.row) in done["texts"] and each.value]
    gone = {e.row for e in planted if core(str(e.value).encode()) not in done["texts"][str(e.row)].encode()}
    rest = [each for each in planted if each.what != "api_key"]
    return {
        "personal values found": _share(len(gone), planted),
        "personal values found, API keys apart": _share(sum(each.row in gone for each in rest), rest),
    }


def _share(count: int, of: Any) -> float:
    return count / len(of) if of else 0.0
